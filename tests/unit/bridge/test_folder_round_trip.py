"""Hugging Face folder -> trainer ranks of any layout -> Hugging Face folder: every bit comes back."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from megatron_spell.bridge import inventory as tables
from megatron_spell.bridge.export import FolderPlan, gather_to_writer
from megatron_spell.bridge.families.entry import Place
from megatron_spell.bridge.hf_files import read_segments
from megatron_spell.bridge.hf_folders import write_hf_folder
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes, trainer_inventory, trainer_shapes
from megatron_spell.bridge.transports.memory import MemoryHub
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.folder_lab import whole_boxes
from tests.unit.bridge.made_weights import inventories, laid_out, made_shape, made_weights
from tests.unit.bridge.test_executor import side_by_side

MAX_RANKS = 8
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
TENSOR = "model.layers.2.input_layernorm.weight"


@st.composite
def layouts(draw) -> tuple[ModelShape, Mesh]:
    """A family with a padded vocabulary, and a mesh of at most eight ranks that it divides over."""
    family = draw(st.sampled_from(["qwen2", "qwen3", "llama", "qwen3_moe", "qwen3_moe"]))
    shape = made_shape(heads=8, groups=4, layers=4, hidden=16, family=family, tied=draw(st.booleans()))
    sizes = st.sampled_from([1, 2, 4])
    tp = draw(sizes)
    pp = draw(sizes.filter(lambda size: tp * size <= MAX_RANKS))
    vpp = draw(st.sampled_from([1, 4 // pp])) if pp > 1 else 1
    dp = draw(sizes.filter(lambda size: tp * pp * size <= MAX_RANKS))
    cp = draw(st.sampled_from([1, 2]).filter(lambda size: tp * pp * dp * size <= MAX_RANKS))
    etp, ep = None, 1
    if shape.experts is not None:
        etp = draw(st.sampled_from([size for size in (1, 2, 4) if (tp * cp * dp) % size == 0]))
        ep = draw(st.sampled_from([size for size in (1, 2, 4) if (tp * cp * dp // etp) % size == 0]))
    return shape, Mesh(tp=tp, pp=pp, dp=dp, cp=cp, ep=ep, etp=etp, vpp=vpp)


def imported(folder: Path, shape: ModelShape, mesh: Mesh, dtype: torch.dtype) -> dict[int, dict[str, torch.Tensor]]:
    found = {}
    for rank in range(mesh.world_size):
        found[rank] = {n: torch.full(s, torch.nan, dtype=dtype) for n, s in trainer_shapes(shape, mesh, rank).items()}
        own = trainer_inventory(shape, mesh, rank)
        read_segments(folder, own, found[rank], checkpoint_shapes(shape), piece_bytes=200)
    return found


def exported(folder: Path, held: dict, folder_plan: FolderPlan, dtype: torch.dtype, bucket_bytes: int) -> dict:
    hub = MemoryHub(timeout_s=20)
    settings_ = {"dtype": dtype, "bucket_bytes": bucket_bytes}
    side_by_side(
        *(
            lambda r=r, own=own: gather_to_writer(folder, own, folder_plan, hub.transport(r), **settings_)
            for r, own in held.items()
        )
    )
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that differ."""
    assert found.keys() == expected.keys()
    pairs = ((n, found[n].view(BITS[t.dtype]), t.view(BITS[t.dtype])) for n, t in expected.items())
    return {name for name, ours, theirs in pairs if not torch.equal(ours, theirs)}


@pytest.mark.slow
@settings(max_examples=30)
@given(
    layouts(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(200, 5000),
    st.integers(2000, 40000),
    st.data(),
)
def test_every_bit_comes_back_from_any_layout(layout, dtype, bucket_bytes, max_shard_bytes, data):
    shape, mesh = layout
    truth = {n: torch.from_numpy(v).to(dtype) for n, v in made_weights(shape).items()}
    rounded = {n: t.float().numpy() for n, t in truth.items()}
    ranks = list(range(mesh.world_size))
    writers = data.draw(st.lists(st.sampled_from(ranks), min_size=1, max_size=3, unique=True))
    with TemporaryDirectory() as place:
        before, after = Path(place, "before"), Path(place, "after")
        write_hf_folder(before, whole_boxes(truth), checkpoint_shapes(shape), dtype, max_shard_bytes=9000)
        held = imported(before, shape, mesh, dtype)
        for rank, own in held.items():  # against slicing that knows nothing of the bridge
            for name, expected in laid_out(shape, rounded, mesh, rank).items():
                np.testing.assert_array_equal(own[name].float().numpy(), expected, err_msg=name)
        whole = checkpoint_inventory(shape)
        folder_plan = FolderPlan(inventories(shape, mesh), whole, writers=writers, max_shard_bytes=max_shard_bytes)
        found = exported(after, held, folder_plan, dtype, bucket_bytes)
    assert not same_bits(found, truth)


def drawn_bits(shape: ModelShape, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every pattern of bits, infinities and NaNs of any payload among them."""
    info = torch.iinfo(BITS[dtype])
    return {
        name: torch.randint(info.min, info.max, size, dtype=BITS[dtype]).view(dtype)
        for name, size in checkpoint_shapes(shape).items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flipped_bit_shows_and_all_others_come_back(tmp_path, dtype):
    shape, mesh = made_shape(layers=4, family="qwen3_moe"), Mesh(tp=2, pp=2, ep=2, etp=1)
    truth = drawn_bits(shape, dtype)
    write_hf_folder(tmp_path / "before", whole_boxes(truth), checkpoint_shapes(shape), dtype)
    held = imported(tmp_path / "before", shape, mesh, dtype)
    folder_plan = FolderPlan(inventories(shape, mesh), checkpoint_inventory(shape), writers=(1,))
    assert not same_bits(exported(tmp_path / "after", held, folder_plan, dtype, 500), truth)
    for rank in (2, 3):  # both ranks of the second stage, which hold the norm alike
        held[rank]["decoder.layers.0.input_layernorm.weight"].view(BITS[dtype])[3] ^= 1
    assert same_bits(exported(tmp_path / "flipped", held, folder_plan, dtype, 500), truth) == {TENSOR}


def test_experts_that_a_folder_keeps_in_one_tensor_come_back_too(tmp_path, monkeypatch):
    """A table whose Hugging Face names of experts have no star: each is a tensor of three dims."""
    table = tables.family_table("qwen3_moe")
    stacked = [
        replace(entry, hf={name.replace(".*", ""): size for name, size in entry.hf.items()})
        if entry.place is Place.EXPERT
        else entry
        for entry in table
    ]
    monkeypatch.setattr(tables, "family_table", lambda _: stacked)
    shape, dtype = made_shape(layers=4, family="qwen3_moe"), torch.bfloat16
    assert checkpoint_shapes(shape)["model.layers.0.mlp.experts.up_proj.weight"] == (4, 8, 12)
    truth = drawn_bits(shape, dtype)
    write_hf_folder(tmp_path / "before", whole_boxes(truth), checkpoint_shapes(shape), dtype)
    for mesh in (Mesh(), Mesh(tp=2, dp=2, ep=2), Mesh(tp=2, pp=2, etp=2)):
        held = imported(tmp_path / "before", shape, mesh, dtype)
        folder_plan = FolderPlan(inventories(shape, mesh), checkpoint_inventory(shape), writers=(0,))
        assert not same_bits(exported(tmp_path / str(mesh), held, folder_plan, dtype, 300), truth)
