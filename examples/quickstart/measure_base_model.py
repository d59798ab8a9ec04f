"""Measure a quickstart model on held-out documents: greedy look-ups, then rounds as in play, sampled.

python examples/quickstart/measure_base_model.py examples/quickstart/base_model
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from contexts import Contexts
from lookup import Spans
from make_base_model import HERE, split_texts
from measure import look_up_table, table_lines
from transcripts import Scribe
from transformers import AutoModelForCausalLM

from megatron_spell.rewards.matching import score
from megatron_spell.rewards.voting import trainable
from megatron_spell.roles.questioner import parse_question, questioner_prompt
from megatron_spell.roles.responder import parse_answer, responder_prompt
from megatron_spell.roles.templates import Templates
from megatron_spell.roles.verifier import parse_vote, verifier_prompt
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.documents import Document
from megatron_spell.types.play import LETTERS, Outcome, ParsedQuestion, TaskName
from megatron_spell.types.prompts import Prompt

NUM_ANSWERS = NUM_VOTES = 8
DOCUMENTS_SHOWN = 3
LENGTHS = (256, 512, 1024)
TOLERANCE = 0.0015


@dataclass(slots=True)
class Tally:
    """What came of the rounds of one task at one length."""

    num_draws: int = 0
    parsed: int = 0
    true: int = 0  # the reference answer is what the documents say
    rates: list[float] = field(default_factory=list)
    groups: list[bool] = field(default_factory=list)  # vote groups on wrong answers: whether one can train on them
    votes_right: list[float] = field(default_factory=list)

    def line(self) -> str:
        rates = np.array(self.rates or [np.nan])
        between = np.mean((rates > 0) & (rates < 1)) if self.rates else np.nan
        votes = f"{np.mean(self.votes_right):.2f}" if self.votes_right else "-"
        return (
            f"{self.parsed / self.num_draws:9.2f}{self.true / max(1, self.parsed):9.2f}"
            f"{rates.mean():9.2f}{between:9.2f}"
            f"{votes:>9}{sum(self.groups):6d}/{len(self.groups)}"
        )


class Table:
    """The model at its three places, sampling with Hugging Face's generate."""

    def __init__(self, folder: Path, temperature: float, top_p: float) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = Tokenizer.load(folder)
        self.scribe = Scribe(tokenizer, ChatFormat(tokenizer), Templates.load(HERE / "templates"), Spans(tokenizer))
        self._sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}

    def say(self, prompt: Prompt, num_samples: int, max_tokens: int) -> list[tuple[str, bool]]:
        """(text, finished) of every sample."""
        tokenizer = self.scribe.tokenizer
        ids = torch.from_numpy(self.scribe.chat.encode(prompt)).long()[None]
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_return_sequences=num_samples,
            max_new_tokens=max_tokens,
            **self._sampling,
        )[:, ids.shape[1] :]
        stop = tokenizer.stop_ids[0]
        return [(tokenizer.decode(row.numpy()), stop in row.tolist()) for row in out]

    def play(self, task: TaskName, own: Sequence[Document], num_tokens: int, rng: random.Random, tally: Tally) -> None:
        """One round on a set's documents, which the questioner sees three of."""
        scribe, tally.num_draws = self.scribe, tally.num_draws + 1
        order = rng.sample(range(len(own)), len(own))
        shown = sorted(order[:DOCUMENTS_SHOWN])
        letter = rng.choice(LETTERS)
        prompt = questioner_prompt(scribe.templates, task, [own[i] for i in shown], (), letter)
        ((text, finished),) = self.say(prompt, 1, 96)
        question = parse_question(
            text,
            task,
            finished=finished,
            num_answer_tokens=lambda text: len(scribe.tokenizer.encode_quoted(text)),
            max_answer_tokens=12,
        )
        if isinstance(question, Outcome):
            return
        tally.parsed += 1
        tally.true += stated([scribe.spans.text(own[i], 0, own[i].num_tokens) for i in shown], question)
        documents = [own[i] for i in within(own, order, num_tokens)]
        answers = self.say(responder_prompt(scribe.templates, task, documents, question), NUM_ANSWERS, 40)
        parsed = [parse_answer(text, task) for text, _ in answers]
        rules = [score(task, answer, question.gold, tolerance=TOLERANCE) for answer in parsed]
        tally.rates.append(float(np.mean(rules)))
        if task is not TaskName.MULTIPLE_CHOICE:
            for answer in sorted({a for a, rule in zip(parsed, rules, strict=True) if a and not rule}):
                self._vote(question, answer, tally)

    def _vote(self, question: ParsedQuestion, answer: str, tally: Tally) -> None:
        said = self.say(verifier_prompt(self.scribe.templates, question, answer), NUM_VOTES, 4)
        votes = [parse_vote(text) for text, _ in said]
        tally.groups.append(trainable(votes, 0.0))
        tally.votes_right.append(float(np.mean([vote is False for vote in votes])))


def within(own: Sequence[Document], order: Sequence[int], num_tokens: int) -> list[int]:
    """Indices, in the set's order, of the questioner's documents and of others in `order` that fit `num_tokens`."""
    kept, left = [], num_tokens
    for place, index in enumerate(order):
        if place < DOCUMENTS_SHOWN or own[index].num_tokens <= left:
            kept.append(index)
            left -= own[index].num_tokens
    return sorted(kept)


def stated(texts: Sequence[str], question: ParsedQuestion) -> bool:
    """Whether a text goes on with the reference answer after the question."""
    answer = question.gold if question.options is None else question.options[LETTERS.index(question.gold)]
    joined = " ".join(f"{question.question} {answer}".split())
    return any(joined in " ".join(text.split()) for text in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=40, help="rounds played at each length")
    parser.add_argument("--contexts", type=int, default=40, help="contexts for the greedy table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    table = Table(options.folder, options.temperature, options.top_p)
    held_out = Contexts.of(table.scribe.tokenizer, split_texts()[1])
    print("greedy look-ups on held-out documents")
    print("\n".join(table_lines(look_up_table(table.model, table.scribe, held_out, options.contexts))), flush=True)
    print(f"\nrounds on held-out documents, temperature {options.temperature}, top-p {options.top_p}")
    print(f"{'':26}   parsed     true   solved  0<rate<1 vote no  trainable groups on wrong answers")
    tasks = list(TaskName)
    for length in LENGTHS:
        rng, tallies = random.Random(options.seed), defaultdict(Tally)
        for number in range(options.rounds):
            own = [held_out.tokenised(text) for text in rng.choice(held_out.sets)]
            table.play(tasks[number % len(tasks)], own, length, rng, tallies[tasks[number % len(tasks)]])
        for task in tasks:
            print(f"{length:6} {task.value:19}{tallies[task].line()}", flush=True)


if __name__ == "__main__":
    main()
