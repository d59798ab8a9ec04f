"""What a model is, read from a Hugging Face config.json without importing transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_spell.config.rope import RopeScaling, UnknownRope, read_rope


@dataclass(frozen=True, slots=True)
class Traits:
    """What all models of a family have in common beyond the layers they share with the others."""

    qkv_bias: bool  # on the query, key and value projections
    qk_norm: bool  # on the queries and keys of each head
    experts: bool = False  # instead of one feed-forward network, in every layer


# By model_type in config.json, which is the family's name everywhere.
FAMILIES = {
    "llama": Traits(qkv_bias=False, qk_norm=False),
    "qwen2": Traits(qkv_bias=True, qk_norm=False),
    "qwen3": Traits(qkv_bias=False, qk_norm=True),
    "qwen3_moe": Traits(qkv_bias=False, qk_norm=True, experts=True),
}


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of experts that stands in every layer.

    A token goes to the `per_token` experts its router scores highest, weighted by the softmax of the scores; with
    `normalised` these weights are made to add up to one. `aux_loss_coef` is the load-balancing loss's weight that the
    model was trained with.
    """

    count: int
    per_token: int
    ffn_size: int
    normalised: bool
    aux_loss_coef: float


class UnknownModel(ValueError):
    """The folder holds no model that a family describes; the message names the folder and the reason."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    tied_embeddings: bool
    rope_theta: float
    norm_eps: float
    max_positions: int
    qkv_bias: bool
    qk_norm: bool
    rope_scaling: RopeScaling | None
    experts: Experts | None = None

    @property
    def num_parameters(self) -> int:
        """Elements of all weights, a tied embedding counted once."""
        return self.num_dense_parameters + self.num_expert_parameters

    @property
    def num_expert_parameters(self) -> int:
        """Elements of the experts' weights, their routers not among them; 0 in a dense model."""
        if self.experts is None:
            return 0
        return self.num_layers * self.experts.count * 3 * self.hidden_size * self.experts.ffn_size

    @property
    def num_dense_parameters(self) -> int:
        """Elements of the weights that every token passes through, routers included."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        attention += self.qkv_bias * self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
        attention += self.qk_norm * 2 * self.head_dim
        feed_forward = self.experts.count if self.experts else 3 * self.ffn_size  # a router is one matrix
        layer = attention + self.hidden_size * (feed_forward + 2)
        embeddings = (1 if self.tied_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_layers * layer + embeddings + self.hidden_size

    @classmethod
    def load(cls, folder: Path) -> "ModelShape":
        """Read `folder`/config.json. Raises UnknownModel."""
        try:
            raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UnknownModel(f"{folder} holds no config.json") from None
        except (OSError, ValueError) as error:
            raise UnknownModel(f"{folder}/config.json cannot be read: {error}") from None
        return cls.from_json(raw, str(folder))

    @classmethod
    def from_json(cls, raw: dict, source: str = "config.json") -> "ModelShape":
        """From the contents of a config.json that errors call `source`. Raises UnknownModel."""
        family = raw.get("model_type", "")
        traits = FAMILIES.get(family)
        if traits is None:
            raise UnknownModel(
                f"{source} has model_type {raw.get('model_type')!r}; known are {', '.join(sorted(FAMILIES))}"
            )
        try:
            sizes = _sizes(raw)
            _refuse_what_is_not_modelled(raw)
            theta, scaling = read_rope(raw)
            experts = _experts(raw) if traits.experts else None
        except KeyError as missing:
            raise UnknownModel(f"{source} lacks {missing}") from None
        except (UnknownRope, _NotModelled) as reason:
            raise UnknownModel(f"{source} {reason}") from None
        return cls(
            family=family,
            rope_theta=theta,
            rope_scaling=scaling,
            qkv_bias=traits.qkv_bias,
            qk_norm=traits.qk_norm,
            experts=experts,
            **sizes,
        )


class _NotModelled(ValueError):
    """The reason, without the file."""


def _refuse_what_is_not_modelled(raw: dict) -> None:
    """Raise for the first setting that the policy would pass over."""
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise _NotModelled(f"has {key}; models with it are not known")
    # Qwen2.5 names a window and does not use it
    if raw.get("use_sliding_window", raw.get("sliding_window") is not None):
        raise _NotModelled("uses a sliding window; only full attention is known")
    others = sorted(set(raw.get("layer_types") or ()) - {"full_attention"})
    if others:
        raise _NotModelled(f"has layer_types {', '.join(others)}; only full_attention is known")
    if raw.get("hidden_act", "silu") != "silu":
        raise _NotModelled(f"has hidden_act {raw['hidden_act']!r}; only silu is known")
    if raw["model_type"] == "qwen2" and raw.get("head_dim") not in (None, _even_head_dim(raw)):
        # transformers would take it, vLLM computes its own
        raise _NotModelled(f"has head_dim {raw['head_dim']}; of a qwen2 model it is hidden_size / num_attention_heads")


def _experts(raw: dict) -> Experts:
    if raw.get("decoder_sparse_step", 1) != 1 or raw.get("mlp_only_layers"):
        raise _NotModelled("has layers without experts; only models with experts in every layer are known")
    count = raw["num_local_experts"] if "num_local_experts" in raw else raw["num_experts"]  # transformers 5 and before
    if raw["num_experts_per_tok"] > count:
        raise _NotModelled(f"sends a token to {raw['num_experts_per_tok']} of {count} experts")
    return Experts(
        count=count,
        per_token=raw["num_experts_per_tok"],
        ffn_size=raw["moe_intermediate_size"],
        normalised=raw.get("norm_topk_prob", False),
        aux_loss_coef=raw.get("router_aux_loss_coef", 0.001),
    )


def _sizes(raw: dict) -> dict[str, Any]:
    return {
        "vocab_size": raw["vocab_size"],
        "hidden_size": raw["hidden_size"],
        "num_layers": raw["num_hidden_layers"],
        "num_heads": raw["num_attention_heads"],
        "num_kv_heads": raw["num_key_value_heads"],
        "head_dim": raw.get("head_dim") or _even_head_dim(raw),
        "ffn_size": raw["intermediate_size"],
        "tied_embeddings": raw.get("tie_word_embeddings", False),
        "norm_eps": raw["rms_norm_eps"],
        "max_positions": raw["max_position_embeddings"],
    }


def _even_head_dim(raw: dict) -> int:
    return raw["hidden_size"] // raw["num_attention_heads"]
