"""A run's own Megatron options, laid over the settings that the policy makes (docs/megatron-options.md)."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from megatron_spell.policy.setup import PolicyError

Settings = TypeVar("Settings")
REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, ImportError)  # what Megatron's own checks raise


def with_options(kind: Callable[..., Settings], options: Mapping[str, object], /, **ours: object) -> Settings:
    """`kind`, a dataclass of megatron-core, of our settings and the options. Raises PolicyError when it refuses them.

    That an option exists, has the right type and contradicts nothing of ours was checked before the run started
    (config/megatron_options.py); what goes together is Megatron's to judge.
    """
    try:
        return kind(**ours | options)
    except REFUSALS as error:
        if not options:
            raise
        given = ", ".join(f"{name} = {value}" for name, value in options.items())
        why = " ".join(str(error).split())
        name = getattr(kind, "__name__", str(kind))
        raise PolicyError(f"policy.megatron: {name} refuses {given}: {why}; change them or leave them out") from None
