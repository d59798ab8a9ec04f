"""What is asked of a benchmark's records: prompts as token ids within the limit, and a seed for every sample."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from megatron_spell.evaluation.protocol import prompt, prompt_text, truncate_middle
from megatron_spell.evaluation.record import Record
from megatron_spell.roles.templates import Templates
from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.seeds import stream_seed


@dataclass(frozen=True, slots=True)
class Protocol:
    """How every record is asked; `seed` is that of the whole evaluation."""

    samples: int
    seed: int
    max_input_tokens: int
    max_tokens: int
    temperature: float
    top_p: float
    documents: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A record's prompt as it goes out: `truncated_tokens` of its `prompt_tokens` were dropped from the middle.

    `text` is the user's turn in words, after the cut.
    """

    prompt_ids_T: np.ndarray
    text: str
    prompt_tokens: int
    truncated_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Asking:
    """Makes prompts and sampling of records. Encoding takes tens of milliseconds for a long record: see `Prompts`."""

    protocol: Protocol
    templates: Templates
    chat: ChatFormat
    tokenizer: Tokenizer

    def asked(self, record: Record) -> Asked:
        """Raises ValueError for a record without documents that is asked with them."""
        parts = prompt(record, self.templates, self.protocol.documents)
        whole_T = self.chat.encode(parts)
        cut_T, num_dropped = truncate_middle(whole_T, self.protocol.max_input_tokens)
        text = self.tokenizer.decode(self.chat.content(cut_T)) if num_dropped else prompt_text(parts)
        return Asked(cut_T, text, len(whole_T), num_dropped)

    def spec(self, record: Record, sample: int) -> SamplingSpec:
        protocol = self.protocol
        return SamplingSpec(
            temperature=protocol.temperature,
            top_p=protocol.top_p,
            max_tokens=protocol.max_tokens,
            seed=stream_seed(protocol.seed, "evaluation", record.benchmark, record.record_id),
            stop_ids=self.tokenizer.stop_ids,
            first=sample,
        )


class Prompts:
    """Prompts made in threads, each once for all samples of its record; the last `kept` are remembered."""

    def __init__(self, asking: Asking, kept: int) -> None:
        self._asking, self._kept = asking, kept
        self._made: OrderedDict[tuple[str, str], asyncio.Task[Asked]] = OrderedDict()

    async def of(self, record: Record) -> Asked:
        key = (record.benchmark, record.record_id)
        if key not in self._made:
            self._made[key] = asyncio.create_task(asyncio.to_thread(self._asking.asked, record))
            if len(self._made) > self._kept:
                self._made.popitem(last=False)
        return await asyncio.shield(self._made[key])
