"""The switch between Megatron's own layers and Transformer Engine's, decided from what there is."""

import inspect
from dataclasses import replace

import pytest
from megatron.core.extensions import transformer_engine as te
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.transformer.moe.experts import SequentialMLP, TEGroupedMLP

from megatron_spell.bridge.megatron_names import table_name
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.policy.attention import PrefixCoreAttention
from megatron_spell.policy.backends import Backend, Found, choose_backend
from megatron_spell.policy.layers import RMSNorm, layer_spec
from megatron_spell.policy.setup import PolicyError

NOTHING = Found(gpu=False, transformer_engine=False, wgrad_kernel=False)
ALL = Found(gpu=True, transformer_engine=True, wgrad_kernel=True)
BARE_GPU = Found(gpu=True, transformer_engine=False, wgrad_kernel=False)
TE = Backend("transformer_engine")


@pytest.mark.parametrize(
    ("wanted", "dtype", "found", "name"),
    [
        ("auto", "bfloat16", ALL, "transformer_engine"),
        ("auto", "float32", ALL, "local"),  # Transformer Engine would multiply in TF32
        ("transformer_engine", "float32", ALL, "transformer_engine"),
        ("local", "bfloat16", ALL, "local"),
        ("auto", "bfloat16", BARE_GPU, "local"),
        ("auto", "bfloat16", NOTHING, "local"),
    ],
)
def test_the_layers_follow_what_is_there(wanted, dtype, found, name):
    assert choose_backend(wanted, dtype, found).name == name


@pytest.mark.parametrize(
    ("found", "lack"), [(NOTHING, "a GPU is not here"), (BARE_GPU, "Transformer Engine 2.0.0 or newer is not here")]
)
def test_what_is_not_there_is_refused(found, lack):
    with pytest.raises(PolicyError, match=f"policy.backend = transformer_engine: {lack}; use auto or local"):
        choose_backend("transformer_engine", "bfloat16", found)


def test_fused_kernels_follow_what_is_there():
    assert not any(choose_backend("auto", "bfloat16", NOTHING).settings.values())
    on = {name for name, value in choose_backend("auto", "bfloat16", ALL).settings.items() if value}
    assert on == {"bias_activation_fusion", "gradient_accumulation_fusion"}
    assert not choose_backend("auto", "bfloat16", BARE_GPU).settings["gradient_accumulation_fusion"]


def test_here_there_is_a_cpu_or_what_megatron_says(alone):
    found = Found.here()
    assert found.transformer_engine <= te.HAVE_TE


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_transformer_engine_layer_is_composed_of_unfused_modules(model, qk_norm):
    spec = layer_spec(shape_of(model, qk_norm=qk_norm), TE).submodules
    attention = spec.self_attention.submodules
    assert spec.input_layernorm is spec.pre_mlp_layernorm is te.TENorm
    assert (attention.linear_qkv, attention.linear_proj) == (te.TEColumnParallelLinear, te.TERowParallelLinear)
    assert (attention.q_layernorm is te.TENorm) == qk_norm
    assert attention.core_attention is PrefixCoreAttention
    mlp = spec.mlp.submodules
    assert (mlp.linear_fc1, mlp.linear_fc2) == (te.TEColumnParallelLinear, te.TERowParallelLinear)


def test_a_local_layer_has_nothing_of_transformer_engine(model):
    spec = layer_spec(shape_of(model), Backend("local")).submodules
    attention, mlp, linear = spec.self_attention.submodules, spec.mlp.submodules, LocalSpecProvider()
    assert spec.input_layernorm is spec.pre_mlp_layernorm is attention.q_layernorm is RMSNorm
    assert attention.linear_qkv is mlp.linear_fc1 is linear.column_parallel_linear()
    assert attention.linear_proj is mlp.linear_fc2 is linear.row_parallel_linear()


def test_experts_are_grouped_with_transformer_engine_only(monkeypatch):
    # Without the library megatron-core has no grouped linear layers and would fall back.
    from megatron.core.extensions import transformer_engine_spec_provider as provider

    monkeypatch.setattr(provider, "TEColumnParallelGroupedLinear", type("Grouped", (), {}))
    assert TE.modules().grouped_mlp_modules(True, False)[0] is TEGroupedMLP
    local = Backend("local")
    assert local.modules().grouped_mlp_modules(local.grouped_experts, False)[0] is SequentialMLP


@pytest.mark.parametrize(
    ("local", "single"),
    [
        ("mlp.experts.linear_fc1.weight3", "mlp.experts.local_experts.3.linear_fc1.weight"),
        ("decoder.layers.11.mlp.experts.linear_fc2.weight127", None),
        ("decoder.layers.1.mlp.experts.local_experts.3.linear_fc1.weight", "unchanged"),
        ("decoder.layers.1.mlp.linear_fc1.weight", "unchanged"),
        ("decoder.layers.1.mlp.router.weight", "unchanged"),
        ("decoder.layers.1.mlp.shared_experts.linear_fc1.weight", "unchanged"),
    ],
)
def test_grouped_experts_are_named_as_single_ones(local, single):
    wanted = {None: "decoder.layers.11.mlp.experts.local_experts.127.linear_fc2.weight", "unchanged": local}
    assert table_name(local) == wanted.get(single, single)


def test_the_names_are_those_of_the_installed_modules():
    """The attributes that make up both names, read from the sources of the modules that register them."""
    sequential, grouped = (inspect.getsource(kind) for kind in (SequentialMLP, TEGroupedMLP))
    assert "self.local_experts = torch.nn.ModuleList()" in sequential
    assert "self.linear_fc1 = " in grouped and "self.linear_fc2 = " in grouped
    assert 'f"weight{i}"' in inspect.getsource(te) or "weight{gemm_idx}" in inspect.getsource(te)


def shape_of(folder, **changed) -> ModelShape:
    return replace(ModelShape.load(folder), **changed)
