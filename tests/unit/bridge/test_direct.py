"""Targets that copy straight out of the sources' tensors, over real shared memory between threads."""

import threading

import pytest
import torch

from megatron_spell.bridge.boxes import BridgeError
from megatron_spell.bridge.direct import DirectReceiver, DirectSender
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places, engine_shapes
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.receipts import WrongWeights
from megatron_spell.bridge.stacks import members
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import inventories, laid_out, made_shape, made_weights
from tests.unit.bridge.transports.parties import meet

SHAPE = made_shape(family="qwen3_moe", layers=2, tied=False, vocab=70)
TRAINERS, ENGINE = Mesh(tp=2), EngineMesh(tp=2)
PLACES = engine_places(SHAPE, ENGINE)
TARGETS = {2 + i: engine_inventory(SHAPE, place) for i, place in enumerate(PLACES)}
PLAN = plan(inventories(SHAPE, TRAINERS), TARGETS)


class Lab:
    """Two trainers and two workers of an engine as threads, connected once."""

    def __init__(self, dtype=torch.float32):
        self.dtype = dtype
        self.transports = meet("shm", 4)
        self.trainers = [self._shared(self.weights_of(rank, seed=0), rank) for rank in range(2)]
        self.engines = [
            {n: torch.full(s, torch.nan, dtype=dtype) for n, s in engine_shapes(SHAPE, place).items()}
            for place in PLACES
        ]
        self.senders = [DirectSender(PLAN, r, self.trainers[r], dtype=dtype, bucket_bytes=900) for r in range(2)]
        self.receivers = [DirectReceiver(PLAN, 2 + i, dtype=dtype, bucket_bytes=900) for i in range(2)]

    def weights_of(self, rank: int, seed: int) -> dict[str, torch.Tensor]:
        return {n: torch.from_numpy(v) for n, v in laid_out(SHAPE, made_weights(SHAPE, seed), TRAINERS, rank).items()}

    def _shared(self, tensors: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
        return self.transports[rank].memory.like(tensors)

    def refresh(self, check: int) -> list[str]:
        said: list[str] = []
        broken: list[BaseException] = []

        def run(rank: int) -> None:
            try:
                if rank < 2:
                    self.senders[rank].run(self.transports[rank], check=check)
                else:
                    self.receivers[rank - 2].into(self.transports[rank], self.engines[rank - 2], check=check)
            except WrongWeights as error:
                said.append(str(error))
            except BaseException as error:
                broken.append(error)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        if broken:
            raise broken[0]
        return said

    def is_landed(self, seed: int) -> bool:
        truth = {n: torch.from_numpy(v).to(self.dtype) for n, v in made_weights(SHAPE, seed).items()}
        for target, tensors in zip(TARGETS.values(), self.engines, strict=True):
            for segment in target:
                landed = tensors[segment.local_name][segment.local_box.index]
                hf = [truth[name][box.index] for name, box in members(segment.hf_name, segment.hf_box)]
                if not torch.equal(landed, torch.stack(hf) if "*" in segment.hf_name else hf[0]):
                    return False
        return True

    def close(self) -> None:
        for transport in self.transports:
            transport.close()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def lab(request):
    made = Lab(request.param)
    yield made
    made.close()


def test_every_bit_lands_and_lands_again(lab):
    assert lab.refresh(check=1) == []
    assert lab.is_landed(seed=0)
    for rank in range(2):
        for name, value in lab.weights_of(rank, seed=1).items():
            lab.trainers[rank][name].copy_(value)
    assert lab.refresh(check=2) == []
    assert lab.is_landed(seed=1)
    assert not lab.is_landed(seed=0)


def test_a_copy_that_goes_wrong_is_found_on_both_sides():
    """Planted: the halves of the first worker's gate and up change places while they land."""
    lab = Lab()
    receiver = lab.receivers[0]
    pairs = receiver._pairs

    def swapped(source, tensors, theirs):
        own, read = pairs(source, tensors, theirs)
        fused = tensors["model.layers.0.mlp.experts.routed_experts.w13_weight"]
        start, size = fused.data_ptr(), fused[0].nbytes // 2
        places = {tensor.data_ptr() - start: i for i, tensor in enumerate(own)}
        if 0 in places and size in places:
            gate, up = places[0], places[size]
            own[gate], own[up] = own[up], own[gate]
        return own, read

    receiver._pairs = swapped
    said = [line for check in range(30) for line in lab.refresh(check)]
    lab.close()
    assert any("what landed on rank 2 is not what rank" in line for line in said)
    assert any("experts.*" in line for line in said)
    assert all(said.count(line) % 2 == 0 for line in said), "one side did not say what the other said"


def test_a_tensor_that_moved_is_not_read_from_where_it_was():
    lab = Lab()
    assert lab.refresh(check=1) == []
    lab.senders[0]._tensors["embedding.word_embeddings.weight"] = torch.zeros(35, 12)
    with pytest.raises(BridgeError, match="rank 0: a tensor has moved since it was shown; connect anew"):
        lab.senders[0].run(lab.transports[0])
    lab.close()


def test_rounding_on_the_way_that_a_copy_would_skip_is_refused():
    receiver = DirectReceiver(PLAN, 2, dtype=torch.bfloat16)
    source = next(iter(receiver._moves))
    own = {n: torch.zeros(s) for n, s in engine_shapes(SHAPE, PLACES[0]).items()}
    theirs = {n: torch.from_numpy(v) for n, v in laid_out(SHAPE, made_weights(SHAPE), TRAINERS, source).items()}
    with pytest.raises(BridgeError, match=r"torch.float32 cannot land as torch.float32 by way of torch.bfloat16"):
        receiver._pairs(source, own, theirs)
