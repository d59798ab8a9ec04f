"""A table with a scripted engine that answers by role, for tests of rounds and steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_spell.config.schema import RunConfig
from megatron_spell.roles.templates import Templates
from megatron_spell.rollout.scripted import ScriptedEngine
from megatron_spell.selfplay.table import Table
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.documents import Document, DocumentSet
from megatron_spell.types.play import Role

GOOD_QUESTION = 'thinking ```json\n{"question": "Which bird?", "answer": "red kite"}\n```'

Say = Callable[[Role, str, int], str]


@dataclass
class Script:
    """What each role says: `questions`, `answers` and `votes` are repeated in turn over the samples of a request."""

    questions: Sequence[str] = (GOOD_QUESTION,)
    answers: Sequence[str] = ("The correct answer is red kite", "The correct answer is blue tit")
    blind: Sequence[str] = ("The correct answer is a duck",)
    votes: Sequence[str] = ("[[NO]]",)
    heard: list[tuple[Role, str]] = field(default_factory=list)

    def __call__(self, role: Role, prompt: str, sample: int) -> str:
        if sample == 0:
            self.heard.append((role, prompt))
        said = {Role.QUESTIONER: self.questions, Role.VERIFIER: self.votes}.get(role)
        if said is None:
            said = self.blind if "(no text is given)" in prompt else self.answers
        return said[sample % len(said)]

    def num_requests(self, role: Role) -> int:
        return sum(heard == role for heard, _ in self.heard)


def role_of(prompt: str) -> Role:
    if "[[YES]]" in prompt:
        return Role.VERIFIER
    return Role.QUESTIONER if "```json" in prompt else Role.RESPONDER


def make_config(folder: Path, **sections) -> RunConfig:
    base = {
        "name": "t",
        "run_folder": folder / "run",
        "model": {"path": folder},
        "data": {"store": folder / "store.h5"},
        "rollout": {"max_model_len": 20000},
        "play": {"questions_per_step": 2, "min_questions": 1, "max_draws_per_step": 8, "documents_shown": 2},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return RunConfig.model_validate(base)


def make_sets(tokenizer: Tokenizer, num_sets: int = 3, num_documents: int = 4) -> dict[str, DocumentSet]:
    def document(s: int, d: int) -> Document:
        text = f"Document {d} of set {s} tells of birds."
        return Document(f"{s}-{d}", f"title {d}", tokenizer.encode_quoted(text))

    return {
        f"set-{s}": DocumentSet(f"set-{s}", "train", tuple(document(s, d) for d in range(num_documents)))
        for s in range(num_sets)
    }


def make_table(folder: Path, say: Say, config: RunConfig | None = None, **engine) -> Table:
    """`folder` holds the byte tokenizer."""
    tokenizer = Tokenizer.load(folder)
    stop = tokenizer.stop_ids[0]

    def reply(prompt_ids_T, spec, sample: int) -> np.ndarray:
        prompt = tokenizer.decode(prompt_ids_T)
        return np.append(tokenizer.encode_quoted(say(role_of(prompt), prompt, sample)), stop)

    sets = make_sets(tokenizer)
    return Table(
        engine=ScriptedEngine(reply, **engine),
        tokenizer=tokenizer,
        chat=ChatFormat(tokenizer),
        templates=Templates.load(None),
        document_set=sets.__getitem__,
        config=config or make_config(folder),
    )
