"""Train, convert, inspect, compare, extend and pad tokenizers, and check chat templates; needs no megatron_spell."""
