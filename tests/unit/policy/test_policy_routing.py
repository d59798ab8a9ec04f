"""Routing replay, router losses and expert loads of one process against Hugging Face with forced routers."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_spell.policy import step
from megatron_spell.policy.routing import routing_metrics
from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.rollout.scripted import ScriptedEngine
from tests.distributed.policy_lab import batch_for, difference, make_batch, make_policy, make_rows, write_tiny
from tests.distributed.policy_rank import write_gradients
from tests.distributed.routing_lab import (
    NUM_EXPERTS,
    NUM_LAYERS,
    RoutedReference,
    layers_swapped,
    one_token_late,
    with_other_choices,
    with_own_choices,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("routing") / "moe", "moe")


@pytest.fixture(scope="module")
def forced(folder) -> RoutedReference:
    return RoutedReference(folder)


def policy_with(folder: Path, **moe):
    policy = make_policy(folder, moe=moe)
    policy.load_hf(folder)
    return policy


def gradients(policy, rows: list, out: Path) -> Path:
    batch = batch_for(policy, rows)
    policy.routing.begin(batch)
    policy.routing.settle_losses(look=lambda: step.token_log_probs(policy.ddp, batch))
    write_gradients(policy, rows, out)
    return out / "gradients"


def off_by(policy, rows: list, reference: RoutedReference) -> float:
    """The largest difference of a log-prob to Hugging Face's with the rows' choices forced on it."""
    found = policy.log_probs(batch_for(policy, rows))
    with torch.no_grad():
        return max(np.abs(f - reference.log_probs(row).numpy()).max() for f, row in zip(found, rows))


def test_replaying_its_own_choices_changes_no_bit(alone, folder, forced, tmp_path):
    rows = with_own_choices(make_rows(0), forced)
    found = {}
    for mode in ("never", "compare", "always"):
        policy = policy_with(folder, routing_replay=mode)
        log_probs = np.concatenate(policy.log_probs(batch_for(policy, rows)))
        found[mode] = log_probs, load_file(gradients(policy, rows, tmp_path / mode) / "model.safetensors")
        differs = policy.update(batch_for(policy, rows)).metrics().get("moe/routing_differs")
        assert differs == (None if mode == "never" else 0.0)
    for mode in ("compare", "always"):
        np.testing.assert_array_equal(found[mode][0], found["never"][0])
        assert all(torch.equal(found[mode][1][name], grad) for name, grad in found["never"][1].items())


def test_replaying_other_choices_equals_routers_that_are_forced_to_them(alone, folder, forced, tmp_path):
    rows = with_other_choices(make_rows(0))
    policy = policy_with(folder, routing_replay="always")
    assert off_by(policy, rows, forced) < 1e-4
    forced.backward(rows)
    assert forced.gradients()["model.layers.0.mlp.gate.weight"].abs().max() > 1e-3, "routers must learn"
    assert difference(gradients(policy, rows, tmp_path), forced.gradients()) < 1e-5


def test_choices_recorded_by_an_engine_reach_the_routers(alone, folder, forced):
    recorded = {row.response_ids_A.tobytes(): row for row in with_other_choices(make_rows(0))}

    async def play(row):
        engine = ScriptedEngine(
            lambda *_: row.response_ids_A,
            experts=lambda _, token_ids_T: recorded[token_ids_T.astype(np.int64).tobytes()].experts,
        )
        return await engine.generate(row.prompt_ids_T, SamplingSpec(1.0, 1.0, max_tokens=row.response_ids_A.size))

    rows = [replace(row, experts=asyncio.run(play(row))[0].experts) for row in make_rows(0)]
    assert off_by(policy_with(folder, routing_replay="always"), rows, forced) < 1e-4
    assert off_by(policy_with(folder, routing_replay="never"), rows, forced) > 1e-2


@pytest.mark.parametrize("spoil", [one_token_late, layers_swapped])
def test_choices_of_other_tokens_or_layers_would_be_seen(alone, folder, forced, spoil):
    rows = with_other_choices(make_rows(0))
    policy = policy_with(folder, routing_replay="always")
    found = policy.log_probs(batch_for(policy, spoil(rows)))
    with torch.no_grad():
        worst = max(np.abs(f - forced.log_probs(row).numpy()).max() for f, row in zip(found, rows))
    assert worst > 1e-2


def test_comparing_counts_the_differences_and_routes_as_without(alone, folder, forced):
    plain, rows = make_rows(0), with_other_choices(make_rows(0))
    policy = policy_with(folder, routing_replay="compare")
    np.testing.assert_array_equal(
        np.concatenate(policy.log_probs(batch_for(policy, rows))),
        np.concatenate(policy.log_probs(batch_for(policy, plain))),
    )
    differ, compared = 0, 0
    for row in rows:
        own = forced.choices(row)
        for mine, given in (
            (own.prompt_T_L_K, row.experts.prompt_T_L_K),
            (own.response_T_L_K, row.experts.response_T_L_K),
        ):
            differ += (~(mine[..., :, None] == given[..., None, :]).any(-1)).sum()
            compared += mine.size
    assert policy.update(batch_for(policy, rows)).metrics()["moe/routing_differs"] == pytest.approx(differ / compared)


def test_tokens_without_choices_go_the_policys_own_way(alone, folder, forced):
    rows = with_own_choices(make_rows(0), forced)
    rows = [replace(row, experts=None) if row.group % 2 else row for row in rows]
    policy = policy_with(folder, routing_replay="always")
    assert any(-1 in b.experts_T_L_K for b in batch_for(policy, rows).bins_D_B[0] if b.experts_T_L_K is not None)
    assert off_by(policy, [replace(row, experts=None) for row in rows], forced) < 1e-4
    assert off_by(policy, rows, forced) < 1e-4


@pytest.mark.parametrize("replayed", [False, True], ids=["own choices", "replayed"])
@pytest.mark.parametrize(("balance", "z"), [(0.5, 0.0), (0.0, 0.01), (0.3, 0.02)])
def test_router_losses_equal_plain_ones_over_rows_run_one_by_one(alone, folder, forced, tmp_path, balance, z, replayed):
    rows = with_other_choices(make_rows(0)) if replayed else make_rows(0)
    moe = {"balance_loss_coef": balance, "z_loss_coef": z}
    policy = policy_with(folder, routing_replay="always" if replayed else "never", **moe)
    forced.backward_with(rows, balance, z)
    found, expected = gradients(policy, rows, tmp_path), forced.gradients()
    assert difference(found, expected) < 1e-5
    forced.backward(rows)
    assert difference(found, forced.gradients()) > 1e-3, "the losses must show"
    metrics = policy.update(batch_for(policy, rows)).metrics()
    with torch.no_grad():
        all_layers = forced.router_losses(rows)
    for name, expected in zip(("moe/balance_loss", "moe/z_loss"), all_layers):
        assert metrics[name] == pytest.approx(expected.item() / NUM_LAYERS, rel=1e-4)


def test_figures_and_router_losses_do_not_depend_on_the_packing(alone, folder, tmp_path):
    rows = make_rows(0)
    policy = policy_with(folder, balance_loss_coef=0.5, z_loss_coef=0.01)
    found = {}
    for max_bin_tokens in (31, 40, 500):
        batch = make_batch(rows, max_bin_tokens=max_bin_tokens)
        policy.load_hf(folder)
        report = policy.update(batch)
        found[max_bin_tokens] = report.num_bins, report.grad_norm, report.routing
    assert found[31][0] > found[40][0] > found[500][0] == 1
    for of_bins in (found[31], found[40]):
        assert of_bins[1] == pytest.approx(found[500][1], rel=1e-5)
        assert of_bins[2] == pytest.approx(found[500][2], rel=1e-5)


def test_loads_are_those_of_hugging_face(alone, folder, forced):
    rows = make_rows(0)
    policy = policy_with(folder)
    metrics = policy.update(batch_for(policy, rows)).metrics()
    choices = [forced.choices(row) for row in rows]
    chosen_T_L_K = np.concatenate([part for c in choices for part in (c.prompt_T_L_K, c.response_T_L_K)])
    for layer in range(NUM_LAYERS):
        loads = np.bincount(chosen_T_L_K[:, layer].ravel(), minlength=NUM_EXPERTS)
        shares = loads[loads > 0] / loads.sum()
        assert metrics[f"moe/load_max_ratio/layer_{layer:02d}"] == pytest.approx(loads.max() / loads.mean())
        entropy = -(shares * np.log(shares)).sum() / np.log(NUM_EXPERTS)
        assert metrics[f"moe/load_entropy/layer_{layer:02d}"] == pytest.approx(entropy)
        assert metrics[f"moe/idle_experts/layer_{layer:02d}"] == (loads == 0).sum()
    assert metrics["moe/load_max_ratio"] == max(metrics[f"moe/load_max_ratio/layer_{n:02d}"] for n in range(NUM_LAYERS))


def test_a_dense_model_has_no_such_figures(alone, model):
    policy = make_policy(model)
    policy.load_hf(model)
    assert policy.update(batch_for(policy, make_rows(0))).routing == {}
    assert routing_metrics([]) == {}
