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
    """A parameter on both sides, the rules that assemble it, and its Hugging Face tensors with their shapes.

    `local` and `rule` are the trainer's (megatron-core), `engine` and `engine_rule` the engine's (vLLM).
    `{layer}` counts from the first that the rank holds in `local`, over the whole model in the other names. An expert's
    entry is written for one expert, without its dim; `*` stands for its number (see stacks.py), and an engine's name
    without it is one tensor with the experts as dim 0. A shape has a word for each dim, and a word is a product of
    shape letters: W vocabulary, D hidden, N heads, K key-value heads, H head size, F feed-forward, E experts, M an
    expert's feed-forward ("NH D" has heads x head size rows and hidden columns); a digit is itself.
    Where Hugging Face has several in one tensor, the one over the other, its rows are a sum of them: to the rules
    "NH+KH+KH D" is queries, keys and values, "F+F D" gate and up, as if each were a tensor of its own.
    """

    place: Place
    local: str
    rule: Rule
    hf: Mapping[str, str]
    engine: str
    engine_rule: Rule


EMBEDDING = {"model.embed_tokens.weight": "W D"}


def entry(place: Place, local: str, rule: Rule, hf: Mapping[str, str]) -> Entry:
    """A parameter outside of the layers, which vLLM calls and cuts as its Hugging Face tensor."""
    (name,) = hf
    return Entry(place, local, rule, hf, name, rule)


def layer_entry(
    local: str,
    rule: Rule,
    hf: Mapping[str, str],
    *,
    engine: tuple[str, Rule] | None = None,
    kind: str = "weight",
) -> Entry:
    """A parameter of every layer; `kind` (weight or bias) ends its name everywhere.

    Without `engine` vLLM has it under the name of its one Hugging Face tensor, by the same rule.
    """
    engine_name, engine_rule = engine or (next(iter(hf)), rule)
    return Entry(
        Place.LAYER,
        f"decoder.layers.{{layer}}.{local}.{kind}",
        rule,
        {f"model.layers.{{layer}}.{name}.{kind}": shape for name, shape in hf.items()},
        f"model.layers.{{layer}}.{engine_name}.{kind}",
        engine_rule,
    )


def expert_entry(local: str, rule: Rule, hf: Mapping[str, str], *, engine: str) -> Entry:
    """A weight of every expert of every layer."""
    return Entry(
        Place.EXPERT,
        f"decoder.layers.{{layer}}.mlp.experts.local_experts.*.{local}.weight",
        rule,
        {f"model.layers.{{layer}}.mlp.experts.*.{name}.weight": shape for name, shape in hf.items()},
        f"model.layers.{{layer}}.mlp.experts.{engine}",
        rule,
    )
