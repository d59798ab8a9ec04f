import errno
import os

import pytest
import torch

from megatron_spell.bridge.export import FolderPlan, gather_to_writer
from megatron_spell.bridge.hf_files import FolderError, read_segments
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes
from megatron_spell.bridge.transports.memory import MemoryHub
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import inventories, made_shape, made_weights
from tests.unit.bridge.test_executor import mesh_tensors, side_by_side

SHAPE = made_shape()


def exported(folder, mesh: Mesh, ranks=None, caught: list | None = None, **settings) -> None:
    """All ranks write `folder` together, each in a thread."""
    planned = {key: settings.pop(key) for key in ("writers", "max_shard_bytes") if key in settings}
    folder_plan = FolderPlan(inventories(SHAPE, mesh), checkpoint_inventory(SHAPE), **planned)
    hub, own = MemoryHub(timeout_s=10), mesh_tensors(SHAPE, made_weights(SHAPE), mesh)

    def write(rank: int) -> None:
        arguments = (folder, own[rank], folder_plan, hub.transport(rank))
        try:
            gather_to_writer(*arguments, dtype=torch.float32, bucket_bytes=500, **settings)
        except FolderError as error:
            if caught is None:
                raise
            caught.append((rank, str(error)))

    side_by_side(*(lambda r=r: write(r) for r in range(mesh.world_size)))


@pytest.mark.parametrize(
    ("mesh", "writers", "max_shard_bytes"),
    [
        (Mesh(), (0,), 2**30),
        (Mesh(tp=2, pp=2), (0,), 2**30),
        (Mesh(tp=2, pp=2), (3, 1), 3000),
        (Mesh(tp=2, dp=2), (0, 1, 2, 3), 9000),  # fewer files than writers
    ],
)
def test_ranks_write_one_folder_together(tmp_path, mesh, writers, max_shard_bytes):
    exported(tmp_path / "model", mesh, writers=writers, max_shard_bytes=max_shard_bytes)
    found = {n: torch.zeros(s) for n, s in checkpoint_shapes(SHAPE).items()}
    read_segments(tmp_path / "model", checkpoint_inventory(SHAPE), found, checkpoint_shapes(SHAPE))
    for name, value in made_weights(SHAPE).items():
        assert torch.equal(found[name], torch.from_numpy(value)), name


def test_a_folder_in_use_fails_on_every_rank(tmp_path):
    (tmp_path / "x").write_text("")
    caught: list = []
    exported(tmp_path, Mesh(tp=2, dp=2), writers=(1, 2), caught=caught)
    assert sorted(rank for rank, _ in caught) == [0, 1, 2, 3]
    assert "exists and is not empty" in dict(caught)[1]
    assert "another rank failed" in dict(caught)[0]


def test_a_writer_that_fails_half_way_fails_every_rank(tmp_path, monkeypatch):
    written = []

    def full_after_five(descriptor: int, content: memoryview, place: int, pwrite=os.pwrite) -> int:
        written.append(place)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, content, place)

    monkeypatch.setattr(os, "pwrite", full_after_five)
    caught: list = []
    exported(tmp_path / "model", Mesh(tp=2), caught=caught)
    assert "model.safetensors: tensor model." in dict(caught)[0]
    assert "cannot be written: [Errno 28] No space left" in dict(caught)[0]
    assert "another rank failed" in dict(caught)[1]
    assert not (tmp_path / "model").exists()
