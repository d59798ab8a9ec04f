"""What a document's text must pass before it is grouped: normal form, length, no exact repetition."""

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from megatron_spell.data.documents import RawDocument, RawSet, Unit
from megatron_spell.types.prompts import neutralise

_MANY_NEWLINES = re.compile(r"\n{3,}")
_MAX_TITLE_CHARS = 200


@dataclass(slots=True)
class Tally:
    """What became of the documents that were read."""

    num_kept: int = 0
    num_too_short: int = 0
    num_duplicate: int = 0

    @property
    def num_dropped(self) -> dict[str, int]:
        return {"too_short": self.num_too_short, "duplicate": self.num_duplicate}


def normalise(text: str) -> str:
    """`text` in Unicode NFC, neutralised, without trailing spaces and runs of blank lines. Idempotent."""
    text = neutralise(unicodedata.normalize("NFC", text))
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return _MANY_NEWLINES.sub("\n\n", lines).strip()


def one_line(label: str) -> str:
    """An id or title without control characters and line breaks."""
    return " ".join(neutralise(unicodedata.normalize("NFC", label)).split())


def normalised(unit: Unit) -> Unit:
    """`unit` with its texts and labels in normal form; a set loses the documents that are empty then."""
    if isinstance(unit, RawSet):
        documents = (normalised(document) for document in unit.documents)
        return replace(unit, documents=tuple(d for d in documents if d.text))
    title = one_line(unit.title[:_MAX_TITLE_CHARS])
    return replace(unit, doc_id=one_line(unit.doc_id), title=title, text=normalise(unit.text))


def text_digest(text: str) -> bytes:
    """16 bytes that are equal for equal texts only."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def clean(documents: Iterable[Unit], min_chars: int, tally: Tally | None = None) -> Iterator[Unit]:
    """Normalised `documents`; those under `min_chars` and exact repetitions of earlier ones are dropped and counted.

    Ids become unique: a second "a" is "a~2". A set that stands as it is counts with its documents, and is kept or
    dropped as a whole.
    """
    tally = tally if tally is not None else Tally()
    seen: set[bytes] = set()
    ids = UniqueIds()
    for unit in map(normalised, documents):
        digest = text_digest(unit.text)
        num = len(unit.documents) if isinstance(unit, RawSet) else 1
        if len(unit.text) < min_chars:
            tally.num_too_short += num
        elif digest in seen:
            tally.num_duplicate += num
        else:
            seen.add(digest)
            tally.num_kept += num
            yield _with_unique_ids(unit, ids)


def _with_unique_ids(unit: Unit, ids: "UniqueIds") -> Unit:
    if isinstance(unit, RawDocument):
        return replace(unit, doc_id=ids.unique(unit.doc_id))
    documents = (replace(document, doc_id=ids.unique(document.doc_id)) for document in unit.documents)
    return replace(unit, documents=tuple(documents))


class UniqueIds:
    """The ids given so far, as hashes of 64 bits: ten million of them fit into 1 GB."""

    def __init__(self) -> None:
        self._given: set[int] = set()

    def unique(self, doc_id: str) -> str:
        """`doc_id`, or with the first free number when it was given before."""
        candidate, number = doc_id, 1
        while (hashed := id_hash(candidate)) in self._given:
            number += 1
            candidate = f"{doc_id}~{number}"
        self._given.add(hashed)
        return candidate

    def take_all(self, hashes: Collection[int]) -> bool:
        """Give out the ids of these hashes, which differ; False, and none is given, when one was given before."""
        if not self._given.isdisjoint(hashes):
            return False
        self._given.update(hashes)
        return True


def id_hash(label: str) -> int:
    """64 bits that tell labels apart."""
    return int.from_bytes(hashlib.blake2b(label.encode("utf-8"), digest_size=8).digest(), "big")
