"""megatron_spell: SPELL self-play training on Megatron-Core and vLLM."""

__version__ = "0.1.0"
