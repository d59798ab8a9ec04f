"""The committed base model: small, loadable, divisible as the layouts need, and able to look things up."""

import random
from pathlib import Path

import pytest
import sentencepiece
import torch
from contexts import Contexts
from make_base_model import CHAT_TEMPLATE, VOCAB_SIZE
from measure import look_up_table
from transformers import AutoModelForCausalLM

from megatron_spell.config.model_shape import ModelShape
from tokenizer_tools.convert import sentencepiece_to_hf

FOLDER = Path(__file__).parents[3] / "examples" / "quickstart" / "base_model"


def test_it_is_small_and_divisible_by_two():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8 * 2**20
    shape = ModelShape.load(FOLDER)
    sizes = (shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.vocab_size, shape.ffn_size)
    assert all(size % 2 == 0 for size in sizes)
    assert shape.head_dim == 32 and shape.max_positions == 4096 and shape.vocab_size == VOCAB_SIZE


def test_its_tokenizer_is_the_sentencepiece_model_beside_it(scribe, texts, tmp_path):
    original = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))
    for text in texts[1][0] + texts[0][0]:
        ids_T = scribe.tokenizer.encode_quoted(text)
        assert ids_T.tolist() == original.encode(text)
        assert scribe.tokenizer.decode(ids_T) == text
    assert scribe.tokenizer.vocab_size == VOCAB_SIZE and scribe.tokenizer.stop_ids == (1,)
    again = sentencepiece_to_hf(FOLDER / "tokenizer.model", tmp_path, chat_template=CHAT_TEMPLATE, max_length=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_text() == (FOLDER / name).read_text()


@pytest.mark.slow
def test_it_answers_better_from_short_documents_than_from_long_ones(scribe, texts):
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    for sets in texts:
        contexts = Contexts.of(scribe.tokenizer, random.Random(0).sample(sets, 10))
        answered = look_up_table(model, scribe, contexts, num_contexts=10)
        short, long = (answered["responder general_qa"][length][0] for length in (256, 1024))
        assert short > 0.5 and long < short
        assert answered["verifier"][256][0] > 0.7
