"""Qwen3 with experts: dense Qwen3, its feed-forward network replaced by a router and experts (`Qwen3MoeForCausalLM`).

Local names are those of megatron-core's `SequentialMLP`, a module for each expert; vLLM keeps a layer's experts in two
tensors.
"""

from megatron_spell.bridge.families import qwen3
from megatron_spell.bridge.families.entry import expert_entry, layer_entry
from megatron_spell.bridge.rules import split_columns, split_rows, whole

TABLE = (
    *(entry for entry in qwen3.TABLE if ".mlp." not in entry.local),
    layer_entry("mlp.router", whole, {"mlp.gate": "E D"}),
    expert_entry("linear_fc1", split_rows, {"gate_proj": "M D", "up_proj": "M D"}, engine="routed_experts.w13_weight"),
    expert_entry("linear_fc2", split_columns, {"down_proj": "D M"}, engine="routed_experts.w2_weight"),
)
