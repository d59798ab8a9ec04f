"""What is prepared once: made anew when a tensor has moved, and only then; never more than two buffers."""

from dataclasses import dataclass, field

import pytest
import torch

from megatron_spell.bridge import compiled
from megatron_spell.bridge.boxes import BridgeError
from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.transports.memory import MemoryHub
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.drawn_layouts import engine_inventories
from tests.unit.bridge.made_engines import engine_laid_out
from tests.unit.bridge.made_weights import inventories, laid_out, made_shape, made_weights
from tests.unit.bridge.test_executor import side_by_side, tensors_of

SHAPE = made_shape(family="qwen3_moe", tied=False)
PLAN = plan(inventories(SHAPE, Mesh()), engine_inventories(SHAPE, EngineMesh(), 1))
BUCKET_BYTES = 3000
Tensors = dict[str, torch.Tensor]


@dataclass
class Pair:
    """A trainer and an engine that stay connected. Engines end up with NaN in padding rows only."""

    hub: MemoryHub = field(default_factory=lambda: MemoryHub(timeout_s=20))
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.own = tensors_of(laid_out(SHAPE, made_weights(SHAPE), Mesh(), 0))
        self.found = {n: torch.full_like(t, torch.nan) for n, t in self.expected(0).items()}
        self.sender = Sender(PLAN, 0, self.own, dtype=self.dtype, bucket_bytes=BUCKET_BYTES)
        self.receiver = Receiver(PLAN, 1, dtype=self.dtype, bucket_bytes=BUCKET_BYTES)
        self.transports = [self.hub.transport(0), self.hub.transport(1)]

    def expected(self, seed: int) -> Tensors:
        return tensors_of(engine_laid_out(SHAPE, made_weights(SHAPE, seed), EngineMesh(), 0))

    def train(self, seed: int) -> None:
        for name, value in laid_out(SHAPE, made_weights(SHAPE, seed), Mesh(), 0).items():
            self.own[name].copy_(torch.from_numpy(value))

    def refresh(self) -> None:
        sending, receiving = self.transports
        side_by_side(lambda: self.sender.run(sending), lambda: self.receiver.into(receiving, self.found))

    def assert_landed(self, seed: int) -> None:
        for name, value in self.expected(seed).items():
            assert torch.equal(self.found[name].nan_to_num(9.0), value.nan_to_num(9.0)), name


@pytest.fixture
def counted(monkeypatch) -> list:
    """How often views are made, of tensors and of buffers."""
    calls = []
    copies, windows = compiled.copies, compiled.Windows._views
    monkeypatch.setattr(compiled, "copies", lambda *args, **named: calls.append("views") or copies(*args, **named))
    monkeypatch.setattr(compiled.Windows, "_views", lambda *args: calls.append("windows") or windows(*args))
    return calls


@pytest.mark.parametrize("brings_memory", [False, True])
def test_a_warm_refresh_makes_no_views(counted, brings_memory):
    pair = Pair(MemoryHub(timeout_s=20, brings_memory=brings_memory))
    pair.refresh()
    assert counted
    for seed in (1, 2, 3):
        counted.clear()
        pair.train(seed)
        pair.refresh()
        pair.assert_landed(seed)
        assert counted == []


@pytest.mark.parametrize("how", ["another storage", "another tensor"])
@pytest.mark.parametrize("side", ["own", "found"])
def test_a_tensor_that_has_moved_is_followed(side, how):
    pair = Pair()
    pair.refresh()
    name = next(n for n in getattr(pair, side) if "experts" in n)
    tensors = getattr(pair, side)
    if how == "another storage":
        tensors[name].data = tensors[name].clone()
    else:
        tensors[name] = tensors[name].clone()
    pair.train(1)
    pair.refresh()
    pair.assert_landed(1)


@pytest.mark.parametrize("side", ["own", "found"])
def test_without_following_stale_memory_would_be_used(side, monkeypatch):
    """The plant: what the test before would see if nobody looked where the tensors lie."""
    pair = Pair()
    pair.refresh()
    prepared = pair.sender._carrier._prepared if side == "own" else pair.receiver._prepared
    monkeypatch.setattr(prepared, "follow", lambda tensors: None)
    name = next(n for n in getattr(pair, side) if "experts" in n)
    getattr(pair, side)[name].data = getattr(pair, side)[name].clone()
    pair.train(1)
    pair.refresh()
    with pytest.raises(AssertionError, match="experts"):
        pair.assert_landed(1)


def test_tensors_may_become_of_another_dtype():
    pair = Pair()
    pair.refresh()
    for tensors in (pair.own, pair.found):
        for name in tensors:
            tensors[name] = tensors[name].double()
    pair.train(1)
    pair.refresh()
    for name, value in pair.expected(1).items():
        assert torch.equal(pair.found[name].nan_to_num(9.0), value.double().nan_to_num(9.0)), name


def test_a_tensor_that_went_missing_between_refreshes_is_named():
    pair = Pair()
    pair.refresh()
    name = "decoder.final_layernorm.weight"
    del pair.own[name]
    with pytest.raises(BridgeError, match=rf"rank 0: the plan needs {name}\[0:12\], no such tensor was given"):
        pair.sender.run(pair.transports[0])


class Watched(torch.utils._python_dispatch.TorchDispatchMode):
    """Adds up the bytes of the new storages that operations return."""

    def __init__(self):
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves((args, kwargs)) if _is(t)}
        for tensor in torch.utils._pytree.tree_leaves(out):
            if _is(tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.num_bytes += tensor.untyped_storage().nbytes()
        return out


def _is(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


@pytest.mark.parametrize("brings_memory", [False, True])
def test_beside_the_tensors_a_rank_has_two_buffers_and_no_more(brings_memory):
    """Every byte that torch allocates for a part is counted, in a cold run and in a warm one."""
    pair = Pair(MemoryHub(timeout_s=20, brings_memory=brings_memory))
    largest = max(bucket.num_bytes for bucket in PLAN.schedule(BUCKET_BYTES, 4))
    for is_cold in (True, False):
        used = dict(zip(("sender", "receiver"), allocated(pair)))
        assert used["sender"] == 2 * largest * is_cold
        assert used["receiver"] == 2 * largest * (is_cold and not brings_memory)


def allocated(pair: Pair) -> list[int]:
    """Bytes that sender and receiver allocate in one refresh."""

    def watched(call) -> int:
        with Watched() as watch:
            call()
        return watch.num_bytes

    sending, receiving = pair.transports
    return side_by_side(
        lambda: watched(lambda: pair.sender.run(sending)),
        lambda: watched(lambda: pair.receiver.into(receiving, pair.found)),
    )


def test_a_transport_with_a_third_buffer_is_refused():
    pair = Pair()
    honest = pair.transports[0].send_buffers
    pair.transports[0].send_buffers = lambda num_bytes: [*honest(num_bytes), torch.empty(num_bytes)]
    with pytest.raises(BridgeError, match="the transport gave 3 buffers, 2 are allowed"):
        pair.sender.run(pair.transports[0])


def test_new_tensors_of_an_engine_are_whole():
    """A stack of the trainer's lands in one tensor of the engine's, also where it does not land in place."""
    pair = Pair()
    sending, receiving = pair.transports
    _, found = side_by_side(
        lambda: pair.sender.run(sending, check=3), lambda: dict(pair.receiver.tensors(receiving, check=3))
    )
    for name, value in pair.expected(0).items():
        real = value[tuple(slice(0, size) for size in found[name].shape)]
        assert torch.equal(found[name], real), name
        assert value[len(real) :].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_boxes_of_an_engine_have_the_shape_of_their_values(dtype):
    pair = Pair(dtype=dtype)
    sending, receiving = pair.transports

    def land() -> None:
        for name, box, values in pair.receiver.boxes(receiving):
            assert values.shape == box.shape
            assert values.dtype == dtype
            pair.found[name][box.index] = values.float()

    side_by_side(lambda: pair.sender.run(sending), land)
    for name, value in pair.expected(0).items():
        assert torch.equal(pair.found[name].nan_to_num(9.0), value.to(dtype).float().nan_to_num(9.0)), name
