"""Trained Llama weights: the policy says what Hugging Face says, and that is the text that comes with the weights."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_spell.policy.model import PolicyModel
from megatron_spell.types.batches import TrainRow
from megatron_spell.types.play import Role, TaskName
from tests.distributed.policy_lab import Reference, make_batch, make_policy

DATA = Path(os.environ.get("MEGATRON_SPELL_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
STORIES = DATA / "fixture_weights" / "stories260K"
BEGIN = 1
# doc/stories260K.md of llama2.c
TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do."
)


def convert(file: Path, folder: Path) -> Path:
    """A llama2.c checkpoint (seven int32, then float32 tensors, each of all layers) as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with file.open("rb") as stream:
        hidden, ffn, layers, heads, kv_heads, vocab, positions = struct.unpack("7i", stream.read(28))
        config = LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=ffn,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=positions,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter, num_heads in in_file_order(model):
                numbers = torch.from_numpy(np.fromfile(stream, np.float32, parameter.numel()))
                parameter.copy_(halves_from_pairs(numbers.view_as(parameter), num_heads))
    model.save_pretrained(folder)
    return folder


def in_file_order(model):
    """Each parameter, and of queries and keys the number of their heads (else 0)."""
    yield model.model.embed_tokens.weight, 0
    config, layers = model.config, model.model.layers
    rotated = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    attention = [f"self_attn.{x}_proj" for x in "qkvo"]
    mlp = [f"mlp.{x}_proj" for x in ("gate", "down", "up")]
    for name in ("input_layernorm", *attention, "post_attention_layernorm", *mlp):
        yield from ((layer.get_submodule(name).weight, rotated.get(name, 0)) for layer in layers)
    yield model.model.norm.weight, 0


def halves_from_pairs(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """llama2.c rotates neighbouring rows together, Hugging Face a row and the one half a head further."""
    if not num_heads:
        return weight
    return weight.view(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def read_vocabulary(file: Path) -> list[bytes]:
    data, at, pieces = file.read_bytes(), 4, []
    while at < len(data):
        _, length = struct.unpack_from("fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return pieces


def text_of(ids: list[int], pieces: list[bytes]) -> str:
    """The piece after the beginning loses its space; a piece such as <0x0A> is that byte."""
    raw = [bytes([int(piece[3:5], 16)]) if piece.startswith(b"<0x") else piece for piece in (pieces[i] for i in ids)]
    return b"".join(raw).decode().removeprefix(" ")


@pytest.fixture(scope="module")
def stories(tmp_path_factory) -> Path:
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is not there; set MEGATRON_SPELL_DATA")
    return convert(STORIES / "stories260K.bin", tmp_path_factory.mktemp("stories") / "model")


@torch.no_grad()
def greedy(reference: Reference, num_tokens: int) -> list[int]:
    ids = torch.tensor([[BEGIN]])
    for _ in range(num_tokens):
        ids = torch.cat([ids, reference.model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids[0, 1:].tolist()


def test_the_policy_follows_the_text_that_the_weights_are_known_for(alone, stories, monkeypatch):
    reference = Reference(stories)
    ids = greedy(reference, 128)
    assert text_of(ids, read_vocabulary(STORIES / "tok512.bin")).startswith(TEXT)
    row = TrainRow(
        role=Role.RESPONDER,
        task=TaskName.GENERAL_QA,
        group=0,
        prompt_ids_T=np.array([BEGIN]),
        response_ids_A=np.array(ids),
        engine_log_probs_A=np.zeros(len(ids), np.float32),
        reward=0.0,
        advantage=0.0,
        version=0,
    )
    seen, head = [], PolicyModel._logits
    monkeypatch.setattr(PolicyModel, "_logits", lambda model, hidden: seen.append(head(model, hidden)) or seen[-1])
    policy = make_policy(stories)
    policy.load_hf(stories)
    policy.log_probs(make_batch([row], max_bin_tokens=1000))
    logits = torch.cat(seen).detach()
    assert logits.argmax(-1).tolist() == ids
    with torch.no_grad():
        torch.testing.assert_close(logits, reference.logits(row), atol=1e-4, rtol=0)
