"""A run's own Megatron options reach Megatron, and change what they should and nothing else."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from torch.optim import AdamW

from megatron_spell.config.policy_sections import MegatronSection
from megatron_spell.config.schema import AlgoSection
from megatron_spell.policy import optimizer_state, step
from megatron_spell.policy.setup import PolicyError
from tests.distributed.policy_lab import make_batch, make_policy, make_rows

FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
BLOCK = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 3}
ATTENTION = {"recompute_granularity": "selective"}
ALL_MODULES = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp", "layernorm"]}


def policy_with(model, dtype: str = "float32", **megatron):
    policy = make_policy(model, dtype=dtype, megatron=MegatronSection(**megatron))
    policy.load_hf(model)
    return policy


def gradients(policy) -> dict[str, torch.Tensor]:
    step.accumulate_gradients(policy.ddp, make_batch(make_rows(0)), AlgoSection())
    return {name: parameter.main_grad for name, parameter in policy.parameters.items()}


@pytest.mark.parametrize("options", [FULL, BLOCK, ATTENTION, ALL_MODULES], ids=["full", "block", "attention", "all"])
def test_recomputed_activations_give_the_same_gradients(alone, model, options, monkeypatch):
    from megatron.core.tensor_parallel.random import CheckpointFunction

    replayed = []
    backward = CheckpointFunction.backward
    monkeypatch.setattr(CheckpointFunction, "backward", lambda *args: replayed.append(1) or backward(*args))
    kept, recomputed = gradients(policy_with(model)), gradients(policy_with(model, transformer=options))
    assert replayed
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=3e-6, rtol=1e-5)


def test_bfloat16_keeps_float32_main_weights_moments_and_gradients(alone, model):
    policy = policy_with(model, dtype="bfloat16")
    assert {gradient.dtype for gradient in gradients(policy).values()} == {torch.float32}
    for key in (optimizer_state.WEIGHT, optimizer_state.FIRST_MOMENT):
        whole = optimizer_state.whole_state(policy.optimizer, policy.parameters, key)
        assert {tensor.dtype for tensor in whole.values()} == {torch.float32}
    policy.update(make_batch(make_rows(0)))
    main = optimizer_state.whole_state(policy.optimizer, policy.parameters, optimizer_state.WEIGHT)
    for name, weight in policy.local_tensors().items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, main[name].bfloat16())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in main.values())


def test_gradients_are_reduced_in_bfloat16_on_request(alone, model):
    policy = policy_with(model, dtype="bfloat16", ddp={"grad_reduce_in_fp32": False})
    assert {gradient.dtype for gradient in gradients(policy).values()} == {torch.bfloat16}


def test_what_megatron_refuses_is_one_line(alone, model):
    with pytest.raises(PolicyError) as caught:
        policy_with(model, transformer={"recompute_granularity": "full"})
    message = str(caught.value)
    assert message.startswith(
        "policy.megatron: TransformerConfig refuses recompute_granularity = full: Using recompute"
    )
    assert "\n" not in message


class GroupCounting(torch.optim.Optimizer):
    """Counts steps as the fused Adams of Transformer Engine and Apex do: in the group."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {})


@pytest.mark.parametrize("kind", [AdamW, GroupCounting])
def test_steps_go_on_where_the_optimizer_counts_them(kind):
    weight = torch.nn.Parameter(torch.ones(3))
    inner = kind([weight])
    optimizer, parameters = SimpleNamespace(optimizer=inner), {"w": weight}
    optimizer_state.set_steps(optimizer, parameters, 7)
    assert inner.param_groups[0].get("step") == (None if kind is AdamW else 7)
    assert inner.state[weight].get("step") == (7 if kind is AdamW else None)


def test_offloaded_state_is_that_of_the_copies(alone):
    """Without a GPU nothing is moved, but the float32 copies are stepped in their own optimizer all the same."""
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    hybrid = HybridDeviceOptimizer(
        [weight], cpu_optimizer_cls=AdamW, gpu_optimizer_cls=AdamW, param_update_in_fp32=True
    )
    optimizer, parameters = SimpleNamespace(optimizer=hybrid), {"w": weight}
    whole = {"w": torch.full((4,), 0.1)}
    for key in (optimizer_state.WEIGHT, optimizer_state.FIRST_MOMENT):
        optimizer_state.place_state(optimizer, parameters, key, whole)
    optimizer_state.set_steps(optimizer, parameters, 5)
    [inner] = hybrid.cpu_optimizers
    [copy] = inner.param_groups[0]["params"]
    assert copy.dtype == torch.float32 and torch.equal(copy, whole["w"])
    assert torch.equal(inner.state[copy]["exp_avg"], whole["w"]) and inner.state[copy]["step"] == 5
    found = optimizer_state.whole_state(optimizer, parameters, optimizer_state.WEIGHT)
    assert torch.equal(found["w"], whole["w"])
