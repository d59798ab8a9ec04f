"""What a line of a family's table says."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from megatron_spell.bridge.rules import Rule


class Place(Enum):
    """Which pipeline stages hold a parameter."""

    FIRST = "the first stage"
    LAYER = "the stage of the layer, once for each layer"
    EXPERT = "the stage of the layer, on the expert-parallel ranks of the expert, once for each expert"
    LAST = "the last stage"
    UNTIED_LAST = "the last stage of a model whose output layer has its own weight"
    TIED_LAST = "the last stage of a model with tied embeddings, when that is not also the first stage"


@dataclass(frozen=True, slots=True)
class Entry:
    """A trainer parameter, the rule that assembles it, and its Hugging Face tensors with their shapes.

    `{layer}` and `{expert}` count from the first that the rank holds in `local`, over the whole model in the Hugging
    Face names. A shape has a word for each dim, and a word is a product of shape letters: W vocabulary, D hidden,
    N heads, K key-value heads, H head size, F feed-forward, E experts, M an expert's feed-forward ("NH D" has
    heads x head size rows and hidden columns).
    """

    place: Place
    local: str
    rule: Rule
    hf: Mapping[str, str]


EMBEDDING = {"model.embed_tokens.weight": "W D"}


def layer_entry(local: str, rule: Rule, kind: str = "weight", **hf: str) -> Entry:
    """A parameter of every layer; `kind` (weight or bias) ends its name on both sides."""
    return Entry(
        Place.LAYER,
        f"decoder.layers.{{layer}}.{local}.{kind}",
        rule,
        {f"model.layers.{{layer}}.{name}.{kind}": shape for name, shape in hf.items()},
    )


def expert_entry(local: str, rule: Rule, **hf: str) -> Entry:
    """A weight of every expert of every layer."""
    return Entry(
        Place.EXPERT,
        f"decoder.layers.{{layer}}.mlp.experts.local_experts.{{expert}}.{local}.weight",
        rule,
        {f"model.layers.{{layer}}.mlp.experts.{{expert}}.{name}.weight": shape for name, shape in hf.items()},
    )
