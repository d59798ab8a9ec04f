"""What the base model learns from is right: the real parsers and scorers take every constructed transcript."""

import random

import numpy as np
import pytest
import torch
from contexts import Contexts
from lookup import look_up
from transcripts import SYMBOLS, TEMPLATE_SYMBOLS, answer_text, well_formed_question
from transformers import Qwen3Config, Qwen3ForCausalLM
from warm_up import batch_rows, token_losses

from megatron_spell.rewards.matching import score
from megatron_spell.roles.questioner import parse_question
from megatron_spell.roles.responder import parse_answer
from megatron_spell.roles.verifier import parse_vote
from megatron_spell.types.play import TaskName


@pytest.fixture(scope="module")
def contexts(scribe, texts):
    return Contexts.of(scribe.tokenizer, texts[0])


def test_no_text_is_on_both_sides_of_the_split(texts):
    train, held_out = ({text for one in sets for text in one} for sets in texts)
    assert len(train) > 500 and len(held_out) > 100
    assert not train & held_out


@pytest.mark.parametrize("task", TaskName)
def test_questions_parse_and_their_answers_score(scribe, contexts, task):
    rng, num_found = random.Random(0), 0
    for _ in range(60):
        documents = contexts.draw(rng, 256, salad_share=0.3, number_share=0.7)
        found = look_up(task, documents, scribe.spans, rng)
        if found is None:
            continue
        num_found += 1
        text = well_formed_question(found)
        assert scribe.tokenizer.decode(scribe.tokenizer.encode_quoted(text)) == text
        parsed = parse_question(
            text,
            task,
            finished=True,
            num_answer_tokens=lambda text: len(scribe.tokenizer.encode_quoted(text)),
            max_answer_tokens=12,
        )
        assert parsed == found.parsed
        answer = parse_answer(answer_text(found), task)
        assert score(task, answer, found.parsed.gold, tolerance=0.0015) == 1.0
        source = documents[found.document]
        joined = scribe.spans.text(source, 0, source.num_tokens).split()
        assert (
            f"{found.question} {found.answer}".split() == joined[(at := _place(joined, found)) : at + _num_words(found)]
        )
    assert num_found > 30


def _num_words(found) -> int:
    return len(f"{found.question} {found.answer}".split())


def _place(words: list[str], found) -> int:
    """Where the fragment and its continuation stand; a number may have punctuation behind it."""
    wanted = f"{found.question} {found.answer}".split()
    for start in range(len(words) - len(wanted) + 1):
        here = words[start : start + len(wanted)]
        if here[:-1] == wanted[:-1] and here[-1].startswith(wanted[-1]):
            words[start + len(wanted) - 1] = wanted[-1]
            return start
    raise AssertionError(f"{wanted} does not stand in the document")


def test_votes_parse_and_half_of_the_answers_are_right(scribe, contexts):
    rng = random.Random(0)
    documents = contexts.draw(rng, 256, 0.0, 1.0)
    made = [scribe.judging(documents, rng, noise=0.0) for _ in range(80)]
    votes = [parse_vote(scribe.tokenizer.decode(t.response_ids_A)) for t in made if t is not None]
    assert None not in votes and 0.3 < np.mean(votes) < 0.7


def test_fixed_wordings_are_single_tokens(scribe):
    for symbol in (*SYMBOLS, *TEMPLATE_SYMBOLS):
        assert len(scribe.tokenizer.encode_quoted(symbol)) == 1, symbol


def test_transcripts_that_share_a_beginning_have_the_loss_of_separate_ones(scribe, contexts):
    rng = random.Random(1)
    documents = contexts.draw(rng, 96, 0.0, 1.0)
    row = [scribe.answering(documents, TaskName.GENERAL_QA, rng, by_habit=True) for _ in range(3)]
    row += [scribe.asking(documents, task, rng) for task in TaskName] + [scribe.judging(documents, rng, 0.0)]
    row = [transcript for transcript in row if transcript is not None]
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=scribe.tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
        )
    )
    shared, _, _ = token_losses(model, batch_rows([row]))
    separate = []
    for transcript in row:
        prompt_T, response_A = (
            torch.from_numpy(x).long() for x in (transcript.prompt_ids_T, transcript.response_ids_A)
        )
        logits = model(torch.cat([prompt_T, response_A])[None]).logits[0, len(prompt_T) - 1 : -1]
        separate.append(torch.nn.functional.cross_entropy(logits, response_A, reduction="none"))
    assert batch_rows([row]).ids_B_T.shape[1] < sum(len(t.prompt_ids_T) + len(t.response_ids_A) for t in row)
    torch.testing.assert_close(shared, torch.cat(separate), atol=1e-4, rtol=1e-4)
