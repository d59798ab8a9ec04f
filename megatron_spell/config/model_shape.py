"""The sizes of a model, read from a Hugging Face config.json without importing transformers."""

import json
from dataclasses import dataclass
from pathlib import Path

# model_type in config.json -> family of the bridge
FAMILIES = {"qwen3": "qwen3"}


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

    @property
    def num_parameters(self) -> int:
        """Elements of all weights, a tied embedding counted once."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.ffn_size + 2 * self.hidden_size + 2 * self.head_dim
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
        family = FAMILIES.get(raw.get("model_type", ""))
        if family is None:
            raise UnknownModel(
                f"{source} has model_type {raw.get('model_type')!r}; known are {', '.join(sorted(FAMILIES))}"
            )
        try:
            return cls(
                family=family,
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                num_layers=raw["num_hidden_layers"],
                num_heads=raw["num_attention_heads"],
                num_kv_heads=raw["num_key_value_heads"],
                head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
                ffn_size=raw["intermediate_size"],
                tied_embeddings=raw.get("tie_word_embeddings", False),
                rope_theta=_rope_theta(raw, source),
                norm_eps=raw["rms_norm_eps"],
                max_positions=raw["max_position_embeddings"],
            )
        except KeyError as missing:
            raise UnknownModel(f"{source} lacks {missing}") from None


def _rope_theta(raw: dict, source: str) -> float:
    """transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`; only plain rope is known."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UnknownModel(f"{source} has rope_type {kind!r}; only 'default' is known")
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise UnknownModel(f"{source} has no rope_theta")
    return float(theta)
