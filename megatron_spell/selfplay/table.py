"""The table a round is played at: who can speak, in which words, and on which documents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from megatron_spell.config.schema import RunConfig
from megatron_spell.roles.templates import Templates
from megatron_spell.rollout.engine import Engine, PromptTooLong, SamplingSpec
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.documents import Document, DocumentSet
from megatron_spell.types.play import Draw, Role, Turn
from megatron_spell.types.prompts import Prompt
from megatron_spell.types.seeds import stream_seed


@dataclass(frozen=True, slots=True, eq=False)
class Speaker:
    """A role with one prompt before it. Its samples have numbers: what sample i says depends on seed and i alone."""

    role: Role
    prompt_ids_T: np.ndarray
    spec: SamplingSpec
    key: str | None
    engine: Engine
    tokenizer: Tokenizer

    async def say(self, *, n: int = 1, first: int = 0) -> list[Turn]:
        """Samples `first` .. `first` + n - 1, in one request. Raises EngineError; cancelling it ends the request."""
        spec = replace(self.spec, n=n, first=first)
        completions = await self.engine.generate(self.prompt_ids_T, spec, key=self.key)
        return [Turn(self.role, self.prompt_ids_T, c, self.tokenizer.decode(c.token_ids_T)) for c in completions]

    async def say_one(self, sample: int) -> Turn:
        (turn,) = await self.say(first=sample)
        return turn


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What every round shares. `document_set` looks a set up by its id."""

    engine: Engine
    tokenizer: Tokenizer
    chat: ChatFormat
    templates: Templates
    document_set: Callable[[str], DocumentSet]
    config: RunConfig

    def documents(self, draw: Draw, indices: Sequence[int]) -> list[Document]:
        every = self.document_set(draw.set_id).documents
        return [every[i] for i in indices]

    def reading(self, draw: Draw) -> list[Document]:
        """What the responder reads: `answer_from` in the set's order, documents of other sets at their places."""
        documents = self.documents(draw, draw.answer_from)
        for distractor in draw.distractors:  # by rising place, so that each comes to stand where it belongs
            others = self.document_set(distractor.set_id).documents
            documents.insert(distractor.place, others[distractor.document])
        return documents

    @property
    def separator_tokens(self) -> int:
        """Tokens between two documents of a prompt."""
        return len(self.chat.encode(self.templates.fill("document_separator"))) - len(self.chat.encode(()))

    def speaker(self, role: Role, prompt: Prompt, *, draw: Draw, purpose: str, key: str | None = None) -> Speaker:
        """`role` before `prompt`.

        The seed depends on the run, the draw and `purpose` only, so that a resumed run hears the same words. `key` is
        the set whose documents the prompt begins with, which one engine then has in its cache; without documents there
        is none, and the least busy engine is taken. Raises PromptTooLong when prompt and answer do not fit the engine's
        context together.
        """
        prompt_ids_T = self.chat.encode(prompt)
        max_tokens = self.config.sampling.max_tokens.of(role)
        if len(prompt_ids_T) + max_tokens > self.config.rollout.max_model_len:
            raise PromptTooLong(f"a {role} prompt of {len(prompt_ids_T)} tokens leaves no room for {max_tokens} more")
        spec = SamplingSpec(
            temperature=self.config.sampling.temperature,
            top_p=self.config.sampling.top_p,
            max_tokens=max_tokens,
            seed=stream_seed(self.config.seed, draw.index, purpose),
            stop_ids=self.tokenizer.stop_ids,
        )
        return Speaker(role, prompt_ids_T, spec, key, self.engine, self.tokenizer)
