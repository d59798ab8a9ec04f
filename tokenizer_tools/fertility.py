"""How many tokens two tokenizers need for the same texts, by kind of document."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tokenizer_tools.errors import TextError
from tokenizer_tools.hf_tokenizer import HfTokenizer
from tokenizer_tools.texts import KindOfText

ALL = "all"


@dataclass(slots=True)
class Counts:
    """Sums over the texts of one kind. `num_words` counts what blanks part; `num_byte_tokens` stand for less than a
    whole character."""

    num_texts: int = 0
    num_words: int = 0
    num_characters: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    num_byte_tokens: int = 0
    num_unknown: int = 0

    def add(self, text: str, ids: list[int], tokenizer: HfTokenizer) -> None:
        self.num_texts += 1
        self.num_words += len(text.split())
        self.num_characters += len(text)
        self.num_bytes += len(text.encode("utf-8"))
        self.num_tokens += len(ids)
        self.num_byte_tokens += sum(index in tokenizer.byte_ids for index in ids)
        self.num_unknown += ids.count(tokenizer.unknown_id) if tokenizer.unknown_id is not None else 0

    def rates(self) -> dict[str, float]:
        """Tokens a word, characters and bytes a token, and shares of tokens; 0 where there is nothing to divide by."""
        return {
            "tokens_per_word": self.num_tokens / max(1, self.num_words),
            "characters_per_token": self.num_characters / max(1, self.num_tokens),
            "bytes_per_token": self.num_bytes / max(1, self.num_tokens),
            "byte_token_share": self.num_byte_tokens / max(1, self.num_tokens),
            "unknown_share": self.num_unknown / max(1, self.num_tokens),
        }

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | self.rates()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Counts of each tokenizer by kind, `ALL` last; `names` are the two as given."""

    names: tuple[str, str]
    counts: dict[str, tuple[Counts, Counts]]

    def as_dict(self) -> dict[str, Any]:
        kinds = {kind: {"a": a.as_dict(), "b": b.as_dict()} for kind, (a, b) in self.counts.items()}
        return {"a": self.names[0], "b": self.names[1], "kinds": kinds}


def compare(
    a: HfTokenizer, b: HfTokenizer, texts: Iterable[KindOfText], max_characters: int | None = None
) -> Comparison:
    """Encode every text with both; special tokens in a text are only characters.

    At most `max_characters` of each kind are read. Raises TextError where there is no text.
    """
    by_kind: dict[str, tuple[Counts, Counts]] = {}
    total = (Counts(), Counts())
    for one in texts:
        pair = by_kind.setdefault(one.kind, (Counts(), Counts()))
        left = None if max_characters is None else max(0, max_characters - pair[0].num_characters)
        text = one.text[:left]
        if not text:
            continue
        for tokenizer, counts, overall in zip((a, b), pair, total):
            ids = tokenizer.encode(text)
            counts.add(text, ids, tokenizer)
            overall.add(text, ids, tokenizer)
    if not total[0].num_tokens:
        raise TextError("the files hold no text to compare on")
    return Comparison((str(a.source), str(b.source)), dict(sorted(by_kind.items())) | {ALL: total})
