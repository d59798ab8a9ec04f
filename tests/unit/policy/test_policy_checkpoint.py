"""A policy saved and loaded by one process goes on as if it had not been interrupted."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_spell.bridge.hf_files import FolderError
from tests.distributed.policy_lab import make_batch, make_policy, make_rows


def trained(folder, dtype="float32", num_updates=2):
    policy = make_policy(folder, dtype=dtype)
    policy.load_hf(folder)
    for seed in range(num_updates):
        policy.update(make_batch(make_rows(seed)))
    return policy


def resumed(folder, checkpoint, dtype="float32"):
    policy = make_policy(folder, dtype=dtype)
    policy.load(checkpoint)
    return policy


@pytest.fixture
def saved(alone, model, tmp_path):
    trained(model).save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_next_updates_are_the_same_to_the_bit(alone, models, tied, dtype, tmp_path):
    unbroken = trained(models[tied], dtype)
    unbroken.save(tmp_path / "checkpoint")
    other = resumed(models[tied], tmp_path / "checkpoint", dtype)
    assert other.num_updates == 2
    for seed in (2, 3):
        batch = make_batch(make_rows(seed))
        assert other.update(batch) == unbroken.update(batch)
    for name, tensor in unbroken.local_tensors().items():
        assert torch.equal(other.local_tensors()[name], tensor)


def test_a_bfloat16_checkpoint_gives_a_float32_policy_its_main_weights(alone, model, tmp_path):
    half = trained(model, "bfloat16")
    half.save(tmp_path / "checkpoint")
    full = resumed(model, tmp_path / "checkpoint")
    for name, parameter in half.parameters.items():
        assert torch.equal(full.local_tensors()[name], parameter.main_param.detach())
        assert not torch.equal(parameter.main_param, parameter.float())


def test_a_checkpoint_before_the_first_update_has_empty_moments(alone, model, tmp_path):
    trained(model, num_updates=0).save(tmp_path / "checkpoint")
    fresh, other = trained(model, num_updates=0), resumed(model, tmp_path / "checkpoint")
    assert other.update(make_batch(make_rows(0))) == fresh.update(make_batch(make_rows(0)))


def test_its_weights_are_a_model_folder(alone, model, saved):
    policy = resumed(model, saved)
    loaded = AutoModelForCausalLM.from_pretrained(saved / "weights", dtype=torch.float32)
    tensors = dict(loaded.named_parameters())
    for segment in policy.inventory():
        found = tensors[segment.hf_name][segment.hf_box.index]
        assert torch.equal(found, policy.local_tensors()[segment.local_name][segment.local_box.index])


def test_nothing_in_it_is_pickled(saved):
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_random_states_return(alone, model, saved):
    policy = resumed(model, saved)
    first = torch.rand(4)
    torch.rand(100)
    policy.load(saved)
    assert torch.equal(torch.rand(4), first)


@pytest.mark.parametrize("text, complaint", [("{", "cannot be read"), ('{"format": "other"}', "is not of the format")])
def test_a_foreign_state_file_is_refused_in_one_line(alone, model, saved, text, complaint):
    (saved / "policy.json").write_text(text)
    with pytest.raises(FolderError, match=complaint) as caught:
        resumed(model, saved)
    assert "\n" not in str(caught.value)


def test_a_missing_moment_is_named(alone, model, saved):
    (saved / "adam_second_moment/model.safetensors").unlink()
    with pytest.raises(FolderError, match="adam_second_moment"):
        resumed(model, saved)


def test_the_number_of_updates_is_what_adam_corrects_its_bias_by(alone, model, saved):
    """Planted: a checkpoint that claims another number of updates goes on differently."""
    honest = resumed(model, saved)
    record = json.loads((saved / "policy.json").read_text())
    (saved / "policy.json").write_text(json.dumps(record | {"num_updates": 7}))
    other = resumed(model, saved)
    for policy in (honest, other):
        policy.update(make_batch(make_rows(2)))
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    assert not torch.equal(honest.local_tensors()[name], other.local_tensors()[name])


def test_a_folder_that_is_taken_is_refused(alone, model, saved):
    with pytest.raises(FolderError, match="not empty"):
        resumed(model, saved).save(saved)
