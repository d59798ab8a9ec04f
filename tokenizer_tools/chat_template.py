"""The chat template of a folder, rendered by transformers' sandboxed jinja within a time limit."""

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizer_tools.errors import TokenizerFileError, first_line
from tokenizer_tools.hf_tokenizer import read_json

TIME_LIMIT_S = 10.0
Messages = Sequence[dict[str, str]]
_MARKER = re.compile(r"<\|[^<>|\s]{1,60}\|>|</?think>|<(?:start|end)_of_turn>|\[/?INST\]")


class TemplateFault(ValueError):
    """The template raised an error or ran into the time limit; the message is its first line."""


class ChatTemplate:
    """The tokenizer of a folder with its chat template. Ids are those of text with special tokens standing for
    themselves, unless `spelled_out`. `thinking_name` is the template's variable. Raises TokenizerFileError where there
    is no template."""

    def __init__(self, folder: Path, thinking_name: str = "enable_thinking") -> None:
        from transformers import AutoTokenizer

        if not folder.is_dir():
            raise TokenizerFileError(f"{folder} is not a folder")
        try:
            self.pretrained: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds for files that are missing or broken
            raise TokenizerFileError(f"{folder} holds no tokenizer that can be read: {first_line(error)}") from None
        if not self.pretrained.is_fast:
            raise TokenizerFileError(f"{folder} holds a slow tokenizer; `tokenizer-tools convert` makes a fast one")
        if not self.pretrained.chat_template:
            raise TokenizerFileError(
                f"{folder} has no chat template; give one in tokenizer_config.json or chat_template.jinja"
            )
        self.thinking_name = thinking_name
        self._backend = self.pretrained.backend_tokenizer
        self.special = {t.content: i for i, t in self._backend.get_added_tokens_decoder().items() if t.special}
        self.generation = read_json(folder / "generation_config.json")
        self.config = read_json(folder / "config.json")

    def render(self, messages: Messages, *, opening: bool = True, thinking: bool | None = None) -> str:
        """The text of the messages, with the opening of the assistant's turn if wished. Raises TemplateFault."""
        choices = {} if thinking is None else {self.thinking_name: thinking}
        try:
            with _time_limit(TIME_LIMIT_S):
                return self.pretrained.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=opening, **choices
                )
        except Exception as error:  # jinja and templates raise many kinds
            raise TemplateFault(first_line(error)) from None

    def ids(self, text: str, *, spelled_out: bool = False) -> list[int]:
        """Ids of the text; `spelled_out` takes special tokens as characters."""
        self._backend.encode_special_tokens = spelled_out
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        finally:
            self._backend.encode_special_tokens = False

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    def token(self, number: int) -> str:
        return self._backend.id_to_token(number) or f"id {number}"

    def markers(self, text: str) -> tuple[str, ...]:
        """What looks like a special token in a text, each once."""
        return tuple(dict.fromkeys(_MARKER.findall(text)))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """generation_config.json's eos_token_id as a list; empty where it states none."""
        stated = self.generation.get("eos_token_id")
        return tuple(n for n in (stated if isinstance(stated, list) else [stated]) if isinstance(n, int))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread when the time is over; elsewhere there is no such limit."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"the chat template ran longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
