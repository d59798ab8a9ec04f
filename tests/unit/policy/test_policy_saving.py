"""Who contributes what to a checkpoint, and that a snapshot stays what it was."""

import threading
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_spell.bridge.inventory import checkpoint_inventory, trainer_inventory
from megatron_spell.bridge.planner import plan
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy.saving import shared_out
from megatron_spell.train.checkpoints import Checkpoints
from megatron_spell.train.convert import choose, convert, find_source
from tests.distributed.policy_lab import make_batch, make_policy, make_rows, write_tiny

MESHES = [Mesh(), Mesh(tp=2), Mesh(dp=4), Mesh(tp=2, pp=2, dp=2), Mesh(pp=4, cp=2), Mesh(tp=2, cp=2, dp=2)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_all_ranks_together_contribute_one_copy(models, mesh, tied):
    assert_shared_out(ModelShape.load(models[tied]), mesh)


@pytest.mark.parametrize("mesh", [Mesh(dp=4, ep=2), Mesh(tp=2, pp=2, vpp=2, dp=2, ep=2, etp=1)], ids=str)
def test_experts_are_shared_out_too(tmp_path, mesh):
    assert_shared_out(ModelShape.load(write_tiny(tmp_path / "experts", "moe")), mesh)


def assert_shared_out(shape: ModelShape, mesh: Mesh) -> None:
    inventories = {rank: trainer_inventory(shape, mesh, rank) for rank, _ in mesh.ranks()}
    shares = shared_out(inventories)
    counts = {rank: sum(s.hf_box.num_elements for s in share) for rank, share in shares.items()}
    assert sum(counts.values()) == shape.num_parameters
    assert all(set(shares[rank]) <= set(inventories[rank]) for rank in shares)
    moves = plan(shares, {0: checkpoint_inventory(shape)}).moves
    assert {(move.src_rank, move.src_name) for move in moves} == {
        (rank, segment.local_name) for rank, share in shares.items() for segment in share
    }


def test_replicas_contribute_alike(model):
    shape = ModelShape.load(model)
    shares = shared_out({rank: trainer_inventory(shape, Mesh(dp=4), rank) for rank in range(4)})
    counts = [sum(s.hf_box.num_elements for s in share) for share in shares.values()]
    assert max(counts) < 1.2 * shape.num_parameters / 4


def test_a_snapshot_is_written_as_it_was_while_the_policy_goes_on(alone, model, tmp_path):
    policy = make_policy(model)
    policy.load_hf(model)
    policy.update(make_batch(make_rows(0)))
    policy.save(tmp_path / "at once")
    state = policy.snapshot()
    policy.update(make_batch(make_rows(1)))
    writing = threading.Thread(target=policy.write, args=(state, tmp_path / "later"))
    writing.start()
    policy.update(make_batch(make_rows(2)))
    writing.join()
    files = sorted(path.relative_to(tmp_path / "at once") for path in (tmp_path / "at once").rglob("*.*"))
    assert len(files) > 4
    for file in files:
        assert (tmp_path / "later" / file).read_bytes() == (tmp_path / "at once" / file).read_bytes(), file


@pytest.fixture
def half_run(alone, model, tmp_path):
    """A bfloat16 policy after two updates, and the run folder that holds its checkpoint."""
    policy = make_policy(model, dtype="bfloat16")
    policy.load_hf(model)
    for seed in range(2):
        policy.update(make_batch(make_rows(seed)))
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", keep=1)
    policy.save(checkpoints.begin(2) / "policy")
    checkpoints.commit(2)
    return policy, tmp_path / "run"


def converted(run: Path, out: Path, dtype: Literal["float32", "bfloat16"] | None) -> Path:
    convert(choose(find_source(run), dtype), out, max_shard_bytes=10**9)
    return out


def test_a_conversion_to_float32_gives_the_optimizers_own_weights(half_run, tmp_path):
    policy, run = half_run
    found = load_file(converted(run, tmp_path / "new", "float32") / "model.safetensors")
    main = {name: parameter.main_param for name, parameter in policy.parameters.items()}
    for segment in policy.inventory():
        own = main[segment.local_name].view(policy.local_tensors()[segment.local_name].shape)
        assert torch.equal(found[segment.hf_name][segment.hf_box.index], own[segment.local_box.index])


def test_a_conversion_speaks_like_the_policy(alone, half_run, tmp_path):
    """In transformers, what float32 weights give is what a float32 policy gives that goes on from the checkpoint."""
    _, run = half_run
    folder = converted(run, tmp_path / "new", "float32")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy = make_policy(folder)
    policy.load(run / "checkpoints/step_000002/policy")
    rows = make_rows(0)
    for row, found in zip(rows, policy.log_probs(make_batch(rows)), strict=True):
        ids = torch.tensor([*row.prompt_ids_T, *row.response_ids_A])[None]
        with torch.no_grad():
            scores = torch.log_softmax(loaded(ids).logits[0, :-1], -1)
        expected = scores.gather(-1, ids[0, 1:, None])[-len(found) :, 0]
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)
