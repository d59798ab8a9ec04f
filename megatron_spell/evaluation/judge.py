"""The judge: whether an answer that the rule refuses says what the gold says. No question is put to it twice."""

import asyncio
import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from megatron_spell.config.benchmark_run import JudgeSection
from megatron_spell.evaluation.endpoint import Endpoint
from megatron_spell.evaluation.protocol import parse_verdict
from megatron_spell.evaluation.writers import read_message
from megatron_spell.types.seeds import stream_seed

TRIES = 2  # a judgment without a verdict is asked for once more
LOCK_S = 60.0  # longest wait for another process that writes judgments


class JudgmentError(ValueError):
    """The file of judgments cannot be used; the message names it."""


class Judgments:
    """Judgments by what was asked, in a file that several evaluations may share.

    The key is a hash of the judge's name, its token limit and the prompt, so another wording asks anew. What is kept is
    the judge's own text. SQLite because evaluations that run at the same time share the file, and a killed one leaves
    it whole.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS judgments (key TEXT, try INTEGER, text TEXT, PRIMARY KEY (key, try))"
            )
        except (sqlite3.Error, OSError) as error:
            raise JudgmentError(f"{path}: cannot be used for judgments: {error}; give another judge.cache") from None

    def of(self, key: str) -> list[str]:
        """The judge's texts, in the order of tries."""
        with closing(self._file.execute("SELECT text FROM judgments WHERE key = ? ORDER BY try", (key,))) as rows:
            return [text for (text,) in rows]

    def keep(self, key: str, attempt: int, text: str) -> None:
        text = text.encode("utf-8", "backslashreplace").decode()  # SQLite takes no lone surrogate
        self._file.execute("INSERT OR IGNORE INTO judgments VALUES (?, ?, ?)", (key, attempt, text))

    def close(self) -> None:
        self._file.close()


@dataclass(slots=True)
class Judged:
    """Judgments asked for in this run, prompts that were known or under way, and prompts left without a verdict."""

    asked: int = 0
    known: int = 0
    unclear: int = 0


class Judge:
    """`model` at an endpoint. Prompts that are under way are shared. One event loop only."""

    def __init__(self, endpoint: Endpoint, model: str, settings: JudgeSection, judgments: Judgments) -> None:
        self.name, self.judged = model, Judged()
        self._endpoint, self._settings, self._judgments = endpoint, settings, judgments
        self._under_way: dict[str, asyncio.Task[bool | None]] = {}

    async def verdict(self, prompt: str) -> bool | None:
        """None when no try gave a verdict: the judge is unclear, and the rule alone counts. Raises EndpointError."""
        key = self._key(prompt)
        if key not in self._under_way:
            task = asyncio.create_task(self._decide(key, prompt), name="judgment")
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
            self._under_way[key] = task
        else:
            self.judged.known += 1
        return await asyncio.shield(self._under_way[key])

    async def close(self) -> None:
        for task in (tasks := list(self._under_way.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._judgments.close()

    async def _decide(self, key: str, prompt: str) -> bool | None:
        texts = self._judgments.of(key)
        self.judged.known += bool(texts)
        for attempt in range(TRIES):
            if attempt == len(texts):
                texts.append(await self._ask(key, prompt, attempt))
            if (verdict := parse_verdict(texts[attempt])) is not None:
                return verdict
        self.judged.unclear += 1
        return None

    async def _ask(self, key: str, prompt: str, attempt: int) -> str:
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._settings.max_tokens,
            "temperature": self._settings.retry_temperature if attempt else 0.0,
            "seed": stream_seed("judge", key, attempt),
        }
        text = (await self._endpoint.post("/chat/completions", body, read_message)).text
        self._judgments.keep(key, attempt, text)
        self.judged.asked += 1
        return text

    def _key(self, prompt: str) -> str:
        asked = json.dumps([self.name, self._settings.max_tokens, prompt])
        return hashlib.sha256(asked.encode()).hexdigest()
