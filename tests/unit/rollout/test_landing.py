from threading import Thread

import numpy as np
import pytest
import torch

from megatron_spell.bridge.boxes import Box
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places
from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.stacks import members
from megatron_spell.bridge.transports.memory import MemoryHub
from megatron_spell.bridge.verify import Probe
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.rollout.checkpoint_form import elements_to_come, whole_shaped
from megatron_spell.rollout.landing import (
    WorkerReport,
    checkpoint_form,
    in_checkpoint,
    link_names,
    probes_from_json,
    probes_to_json,
    target_inventory,
)
from tests.unit.config.test_check import QWEN3, QWEN3_MOE

SHAPE = ModelShape.from_json(QWEN3 | QWEN3_MOE)
MESH = EngineMesh(tp=2, pp=2, expert_parallel=True)


def report(worker: int, landing: str = "checkpoint") -> WorkerReport:
    return WorkerReport(worker, engine_places(SHAPE, MESH)[worker], landing, "why", "host", "cpu")


@pytest.mark.parametrize("worker", range(4))
def test_a_report_and_probes_survive_the_way_as_text(worker):
    assert WorkerReport.from_json(report(worker).to_json()) == report(worker)
    probes = (Probe("a", Box((0, 1), (2, 3))), Probe("b.*.c", Box((0,), (1,))))
    assert probes_from_json(probes_to_json(probes)) == probes


def test_a_worker_is_sent_what_it_holds_under_the_names_it_lands_in():
    held = engine_inventory(SHAPE, report(3).place)
    assert target_inventory(SHAPE, report(3, "in_place")) == held
    form = target_inventory(SHAPE, report(3))
    assert {(s.hf_name, s.hf_box) for s in form} == {(s.hf_name, s.hf_box) for s in held}
    for segment in form:
        for own, meant in zip(members(segment.local_name, segment.local_box), members(segment.hf_name, segment.hf_box)):
            assert in_checkpoint(*own) == meant
    assert in_checkpoint("model.norm.weight", Box((0,), (4,))) == ("model.norm.weight", Box((0,), (4,)))
    assert checkpoint_form((*held, *held)) == form


def test_only_a_workers_boxes_come_and_the_rest_of_each_tensor_is_what_was_asked_for():
    rng = np.random.default_rng(0)
    sent = {n: torch.tensor(rng.normal(size=s), dtype=torch.float32) for n, s in checkpoint_shapes(SHAPE).items()}
    wanted = target_inventory(SHAPE, report(1))
    way = plan({0: checkpoint_inventory(SHAPE)}, {1: wanted})
    num_sent = sum(way.bytes_between(4).values()) // 4
    assert num_sent == sum(s.hf_box.num_elements for s in wanted) < 0.45 * SHAPE.num_parameters

    hub = MemoryHub()
    trainer, engine = hub.transport(0), hub.transport(1)
    receiver = Receiver(way, 1, dtype=torch.float32, bucket_bytes=50_000)
    sending = Thread(target=Sender(way, 0, sent, dtype=torch.float32, bucket_bytes=50_000).run, args=(trainer,))
    sending.start()
    boxes = receiver.boxes(engine)
    come = dict(whole_shaped(boxes, elements_to_come(way, 1), checkpoint_shapes(SHAPE), rest=float("nan")))
    sending.join()

    held: dict[str, list[Box]] = {}
    for segment in wanted:
        for name, box in members(segment.hf_name, segment.hf_box):
            held.setdefault(name, []).append(box)
    assert come.keys() == held.keys()
    for name, tensor in come.items():
        expected = torch.full_like(sent[name], float("nan"))
        for box in held[name]:
            expected[box.index] = sent[name][box.index]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0, equal_nan=True)


def test_the_ranks_of_a_link_have_names():
    assert link_names(2, "engine 3", 1) == {0: "trainer rank 0", 1: "trainer rank 1", 2: "engine 3"}
    assert link_names(1, "engine 0", 2)[2] == "engine 0 worker 1"
