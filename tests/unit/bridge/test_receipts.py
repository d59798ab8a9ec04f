"""Faults planted on either side of a refresh: both sides say so and name the tensor and each other."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.bridge.boxes import Box
from megatron_spell.bridge.compiled import apart
from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.inventory import checkpoint_inventory
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.receipts import WrongWeights, sample, sampled_box
from megatron_spell.bridge.transports.memory import MemoryHub
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.drawn_layouts import engine_inventories
from tests.unit.bridge.made_engines import engine_laid_out
from tests.unit.bridge.made_weights import inventories, laid_out, made_shape, made_weights
from tests.unit.bridge.test_executor import side_by_side, tensors_of

SHAPE = made_shape(groups=4, heads=4, layers=1, family="qwen3_moe")  # q, k and v of one shape, so a swap is possible
TRAINER, ENGINE = Mesh(tp=2), EngineMesh(tp=2)
PLAN = plan(inventories(SHAPE, TRAINER), engine_inventories(SHAPE, ENGINE, 2))


class Meddled:
    """A transport whose arrivals are changed by `meddle(tag, bytes)` on the way."""

    def __init__(self, inner, meddle: Callable[[int, torch.Tensor], None]):
        self._inner, self._meddle = inner, meddle

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def receive(self, src, tag, buffer, num_bytes):
        arrival = self._inner.receive(src, tag, buffer, num_bytes)

        def wait():
            found = arrival.wait()
            self._meddle(tag, found)
            return found

        return SimpleNamespace(wait=wait, release=arrival.release)


def refreshed(*, check=5, plans=None, plant=None, meddle=None, bucket_bytes=4 * 10**6) -> dict[int, str]:
    """Run the four ranks; what each raised. `plans` are those of single ranks, `plant` is shown each rank's part."""
    weights, hub = made_weights(SHAPE), MemoryHub(timeout_s=20)
    settings = {"dtype": torch.float32, "bucket_bytes": bucket_bytes}
    faults: dict[int, str] = {}

    def run(rank: int) -> None:
        transport = hub.transport(rank) if meddle is None else Meddled(hub.transport(rank), meddle)
        own_plan = (plans or {}).get(rank, PLAN)
        try:
            if rank < 2:
                own = tensors_of(laid_out(SHAPE, weights, TRAINER, rank))
                part = Sender(own_plan, rank, own, **settings)
                (plant or (lambda *_: None))(rank, part._carrier._prepared)
                part.run(transport, check=check)
            else:
                found = {n: torch.zeros(v.shape) for n, v in engine_laid_out(SHAPE, weights, ENGINE, rank - 2).items()}
                part = Receiver(own_plan, rank, **settings)
                (plant or (lambda *_: None))(rank, part._prepared)
                part.into(transport, found, check=check)
        except WrongWeights as fault:
            faults[rank] = str(fault)

    side_by_side(*(lambda r=r: run(r) for r in range(4)))
    return faults


def assert_named(faults: dict[int, str], named: str, ranks: tuple[int, int]) -> None:
    src, dst = ranks
    assert set(faults) == {src, dst}
    for fault in faults.values():
        assert re.search(f"what landed on rank {dst} is not what rank {src} sent: .*{named}", fault), fault
        assert "\n" not in fault


def test_a_refresh_without_a_fault_passes_whatever_is_sampled():
    for check in range(4):
        assert refreshed(check=check, bucket_bytes=600) == {}


def test_a_bit_flipped_on_the_way_is_seen_on_both_sides():
    (bucket,) = [b for b in PLAN.schedule(4 * 10**6, 4) if (b.src_rank, b.dst_rank) == (0, 2)]
    part = sample(bucket, 5)
    offset, move = bucket.moves[part.number]
    index = tuple(a - b for a, b in zip(part.move.hf_box.start, move.hf_box.start))
    at = offset + 4 * int(torch.arange(move.num_elements).view(move.hf_box.shape)[index])

    def flip(tag: int, content: torch.Tensor) -> None:
        if tag == bucket.tag:
            content[at] ^= 1

    assert_named(refreshed(meddle=flip), re.escape(f"{part.move.hf_name}{part.move.hf_box}"), (0, 2))


def crossed(prepared, one: str, other: str) -> None:
    """From here on the views of two tensors change places: packed from, or landed in, the wrong one."""
    honest = prepared.views

    def views(bucket, tensors):
        found = list(honest(bucket, tensors))
        if (bucket.src_rank, bucket.dst_rank) != (0, 2):
            return found
        names = [
            f"{move.hf_name}{'' if index is None else index}"
            for _, move in bucket.moves
            for index in (range(move.hf_box.start[0], move.hf_box.stop[0]) if apart(move) else [None])
        ]
        a, b = (next(i for i, name in enumerate(names) if each in name) for each in (one, other))
        found[a], found[b] = found[b], found[a]
        return found

    prepared.views = views


@pytest.mark.parametrize("side", [0, 2], ids=["sender", "receiver"])
@pytest.mark.parametrize(
    ("pair", "named"),
    [
        (("q_proj", "k_proj"), r"self_attn\.[qk]_proj"),
        (("gate_proj.weight0", "up_proj.weight0"), r"experts\.\*\.(gate|up)_proj"),
        (("down_proj.weight1", "down_proj.weight2"), r"experts\.\*\.down_proj"),
    ],
    ids=["query and key", "gate and up", "two experts"],
)
def test_tensors_that_change_places_are_seen_on_both_sides(side, pair, named):
    """A refresh samples one place of its one bucket; within these 64 it falls on what is wrong more than once."""

    def plant(rank: int, prepared) -> None:
        if rank == side:
            crossed(prepared, *pair)

    found = [faults for check in range(64) if (faults := refreshed(check=check, plant=plant))]
    assert found
    for faults in found:
        assert_named(faults, named, (0, 2))


@pytest.mark.parametrize("pair", [("q_proj", "k_proj"), ("gate_proj", "up_proj")])
def test_two_sides_of_two_minds_about_a_place_are_found(pair):
    """The bytes agree, what they are called does not: a receiver whose table has two tensors the wrong way round."""
    names = dict([pair, pair[::-1]])

    def renamed(name: str) -> str:
        return next((name.replace(a, b) for a, b in names.items() if a in name), name)

    targets = engine_inventories(SHAPE, ENGINE, 2)
    wrong = {r: tuple(replace(s, hf_name=renamed(s.hf_name)) for s in own) for r, own in targets.items()}
    other = plan(inventories(SHAPE, TRAINER), wrong)
    found = [faults for check in range(64) if (faults := refreshed(check=check, plans={2: other}))]
    assert found
    for faults in found:
        assert_named(faults, f"({'|'.join(pair)})", (0, 2))


def test_another_seed_samples_another_place():
    (bucket,) = [b for b in PLAN.schedule(4 * 10**6, 4) if (b.src_rank, b.dst_rank) == (0, 2)]
    drawn = {sample(bucket, seed).move for seed in range(200)}
    assert {move.hf_name for move in drawn} == {move.hf_name for _, move in bucket.moves}
    assert sample(bucket, 7) == sample(bucket, 7)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=3), st.integers(1, 5000), st.integers(0, 9))
def test_a_sampled_box_lies_inside_and_is_not_too_large(sizes, max_elements, seed):
    box = Box((3,) * len(sizes), tuple(3 + size for size in sizes))
    found = sampled_box(box, random.Random(seed), max_elements)
    assert box.contains(found)
    assert found.num_elements <= max_elements
    assert found == box or found.num_elements * 8 >= max_elements or min(sizes) < 64


def test_a_target_that_cannot_hold_the_wires_dtype_is_compared_as_it_came():
    weights, hub = made_weights(SHAPE), MemoryHub(timeout_s=20)
    moves = plan(inventories(SHAPE, Mesh()), engine_inventories(SHAPE, EngineMesh(), 1))
    found = {
        n: torch.zeros(v.shape, dtype=torch.bfloat16)
        for n, v in engine_laid_out(SHAPE, weights, EngineMesh(), 0).items()
    }
    sender = Sender(moves, 0, tensors_of(laid_out(SHAPE, weights, Mesh(), 0)), dtype=torch.float32, bucket_bytes=600)
    receiver = Receiver(moves, 1, dtype=torch.float32, bucket_bytes=600)
    side_by_side(lambda: sender.run(hub.transport(0), check=1), lambda: receiver.into(hub.transport(1), found, check=1))
    expected = torch.from_numpy(weights["model.norm.weight"]).to(torch.bfloat16)
    assert torch.equal(found["model.norm.weight"], expected)


def test_what_only_passes_through_is_compared_as_it_came():
    weights, hub = made_weights(SHAPE), MemoryHub(timeout_s=20)
    moves = plan(inventories(SHAPE, TRAINER), {2: checkpoint_inventory(SHAPE)})
    settings = {"dtype": torch.float32, "bucket_bytes": 600}
    senders = [
        lambda r=r: Sender(moves, r, tensors_of(laid_out(SHAPE, weights, TRAINER, r)), **settings).run(
            hub.transport(r), check=1
        )
        for r in range(2)
    ]
    receiver = Receiver(moves, 2, **settings)

    def flip(tag: int, content: torch.Tensor) -> None:
        content[0] ^= 1 if tag == 0 else 0

    bad = {2: Meddled(hub.transport(2), flip)}
    with pytest.raises(WrongWeights, match="what landed on rank 2 is not what rank 0 sent"):
        side_by_side(*senders, lambda: list(receiver.tensors(bad[2], check=1)))
