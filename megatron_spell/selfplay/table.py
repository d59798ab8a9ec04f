"""The table a round is played at: who can speak, in which words, and on which documents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

    async def speak(self, role: Role, prompt: Prompt, *, n: int, draw: Draw, purpose: str) -> list[Turn]:
        """`n` samples of `role` on `prompt`.

        The seed depends on the run, the draw and `purpose` only, so that a resumed run hears the same words. Raises
        PromptTooLong when prompt and answer do not fit the engine's context together, EngineError otherwise.
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
            n=n,
            stop_ids=self.tokenizer.stop_ids,
        )
        completions = await self.engine.generate(prompt_ids_T, spec, key=draw.set_id)
        return [Turn(role, prompt_ids_T, c, self.tokenizer.decode(c.token_ids_T)) for c in completions]
