"""Small real models with a byte tokenizer, in one safetensors file or in shards."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny_tokenizer import write_byte_tokenizer

NUM_TOKENS = 259  # of the byte tokenizer


def write_model(folder: Path, *, tied: bool, rows: int = NUM_TOKENS, dtype=torch.float32, shards: bool = False) -> Path:
    """A Llama of 2 layers with random weights, its output layer scaled so that logits are far from 0."""
    write_byte_tokenizer(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, initializer_range=0.05, bos_token_id=None, eos_token_id=258,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    stop = json.loads((folder / "generation_config.json").read_text())
    model.save_pretrained(folder, max_shard_size="20KB" if shards else "1GB")
    (folder / "generation_config.json").write_text(json.dumps(stop))
    return folder


def load(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder).eval()
