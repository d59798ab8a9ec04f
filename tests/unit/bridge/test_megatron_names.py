"""Every way megatron-core lays a layer out, seen under the table's names."""

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.moe import experts as megatron_experts
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_spell.bridge.executor import Receiver
from megatron_spell.bridge.inventory import checkpoint_inventory, trainer_inventory
from megatron_spell.bridge.megatron_names import table_name, table_tensors
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.transports.memory import MemoryHub
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import laid_out, made_shape, made_weights
from tests.unit.bridge.test_executor import tensors_of

SHAPE = made_shape(family="qwen3_moe", layers=2, tied=False)
LAYER = "decoder.layers.1."
Arrays = dict[str, np.ndarray]


def test_fused_norms_are_those_that_megatron_itself_maps():
    """Megatron's local spec says what its checkpoints, written by Transformer Engine's layers, call its norms."""
    local_to_fused = get_gpt_layer_local_spec(qk_layernorm=True).submodules.sharded_state_dict_keys_map
    assert len(local_to_fused) == 2
    for local, fused in local_to_fused.items():
        assert table_name(f"{LAYER}{fused}weight") == f"{LAYER}{local}weight"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("chunk1.decoder.layers.3.mlp.experts.linear_fc1.weight12", "mlp.experts.local_experts.12.linear_fc1.weight"),
        ("chunk1.decoder.layers.3.mlp.experts.linear_fc2.weight0", "mlp.experts.local_experts.0.linear_fc2.weight"),
        ("chunk1.decoder.layers.3.self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("chunk1.decoder.layers.3.self_attention.linear_qkv.weight", "self_attention.linear_qkv.weight"),
        ("chunk1.decoder.layers.3.mlp.linear_fc1.weight", "mlp.linear_fc1.weight"),
    ],
)
def test_names(theirs, ours):
    assert table_name(theirs) == "chunk1.decoder.layers.3." + ours


def transformer_engine(own: Arrays) -> Arrays:
    """A rank's arrays under Transformer Engine's names: norms fused, experts numbered in one module."""
    found = {}
    for name, value in own.items():
        *head, last = name.split(".local_experts.")
        if head:
            expert, module, kind = last.split(".")
            name = f"{head[0]}.{module}.{kind}{expert}"
        found[name.replace("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight")] = value
    return found


def legacy(own: Arrays) -> Arrays:
    """A rank's arrays with a layer's experts in two, flattened [experts, in, out] as `GroupedMLP` reads them."""
    found = {name: value for name, value in own.items() if ".local_experts." not in name}
    for layer in range(SHAPE.num_layers):
        prefix = f"decoder.layers.{layer}.mlp.experts."
        for number in (1, 2):
            names = [n for n in own if n.startswith(prefix) and f"linear_fc{number}" in n]
            numbers = [int(n.split("local_experts.")[1].split(".")[0]) for n in names]
            by_expert = np.stack([own[name].T for _, name in sorted(zip(numbers, names))])
            rows = SHAPE.hidden_size if number == 1 else -1
            found[f"{prefix}weight{number}"] = by_expert.reshape(rows, -1 if number == 1 else SHAPE.hidden_size)
    return found


@pytest.mark.parametrize("layout", [transformer_engine, legacy])
@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=2, ep=2, etp=1), Mesh(tp=2, dp=2, ep=2, etp=2)], ids=str)
def test_a_folder_is_loaded_through_the_views(layout, mesh):
    """Straight into the parameters, transposed or not; then read through the views again, into a folder."""
    weights = made_weights(SHAPE)
    num_local_experts = SHAPE.experts.count // mesh.ep
    for rank in range(mesh.world_size):
        inventory = trainer_inventory(SHAPE, mesh, rank)
        expected = layout(laid_out(SHAPE, weights, mesh, rank))
        parameters = {name: torch.full(value.shape, torch.nan) for name, value in expected.items()}
        views = table_tensors(parameters.items(), num_local_experts)
        loading = plan({0: checkpoint_inventory(SHAPE)}, {0: inventory})
        Receiver(loading, 0, dtype=torch.float32, sources=tensors_of(weights)).into(MemoryHub().transport(0), views)
        for name, value in expected.items():
            np.testing.assert_array_equal(parameters[name].numpy(), value, err_msg=name)
        back = plan({0: inventory}, {0: inventory})
        copies = {name: torch.zeros(view.shape) for name, view in views.items()}
        Receiver(back, 0, dtype=torch.float32, sources=views).into(MemoryHub().transport(0), copies)
        for name, value in laid_out(SHAPE, weights, mesh, rank).items():
            real = np.s_[: len(value) - np.isnan(value).any(axis=tuple(range(1, value.ndim))).sum()]
            np.testing.assert_array_equal(copies[name].numpy()[real], value[real], err_msg=name)


class Alone:
    """A group of one."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def multiplied(tokens: torch.Tensor, weights: torch.Tensor, tokens_per_expert: torch.Tensor, trans_b: bool):
    """The grouped multiplication of a library that is not needed for its arithmetic."""
    assert not trans_b
    parts = tokens.split(tokens_per_expert.tolist())
    return torch.cat([part @ weight for part, weight in zip(parts, weights, strict=True)])


def test_megatrons_grouped_experts_compute_what_the_folders_experts_do(monkeypatch):
    """The real module: what the views put into it is multiplied as Hugging Face's experts would be."""
    monkeypatch.setattr(megatron_experts.gg, "assert_grouped_gemm_is_available", lambda: None)
    monkeypatch.setattr(megatron_experts.gg, "ops", SimpleNamespace(gmm=multiplied), raising=False)
    monkeypatch.setitem(os.environ, "TORCHDYNAMO_DISABLE", "1")
    shape = replace(SHAPE, num_layers=1)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_moe_experts=4,
        moe_ffn_hidden_size=shape.experts.ffn_size,
        moe_grouped_gemm=True,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        use_cpu_initialization=True,
        bf16=True,
        params_dtype=torch.float32,
    )
    groups = SimpleNamespace(ep=Alone(), expt_tp=Alone(), expt_dp=Alone())
    module = megatron_experts.GroupedMLP(4, config, groups)
    weights = {name: torch.from_numpy(value) for name, value in made_weights(shape).items()}
    views = table_tensors(((f"decoder.layers.0.mlp.experts.{n}", p) for n, p in module.named_parameters()), 4)
    inventory = tuple(s for s in trainer_inventory(shape, Mesh(), 0) if "local_experts" in s.local_name)
    moves = plan({0: checkpoint_inventory(shape)}, {0: inventory})
    Receiver(moves, 0, dtype=torch.float32, sources=weights).into(MemoryHub().transport(0), views)
    counts, generator = torch.tensor([2, 0, 3, 1]), torch.Generator().manual_seed(0)
    tokens = torch.randn(6, shape.hidden_size, generator=generator)
    with torch.no_grad():
        found, _ = module(tokens, counts, torch.ones(6))
    expected = []
    for expert, part in enumerate(tokens.split(counts.tolist())):
        gate, up, down = (
            weights[f"model.layers.0.mlp.experts.{expert}.{x}_proj.weight"] for x in ("gate", "up", "down")
        )
        expected.append((F.silu(part @ gate.T) * (part @ up.T)) @ down.T)
    torch.testing.assert_close(found, torch.cat(expected))
