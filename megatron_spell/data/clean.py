"""What a document's text must pass before it is grouped: normal form, length, no exact repetition."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from megatron_spell.data.documents import RawDocument
from megatron_spell.types.prompts import neutralise

_MANY_NEWLINES = re.compile(r"\n{3,}")
_MAX_TITLE_CHARS = 200


@dataclass(slots=True)
class Tally:
    """What became of the documents that were read."""

    num_kept: int = 0
    num_too_short: int = 0
    num_duplicate: int = 0


def normalise(text: str) -> str:
    """`text` in Unicode NFC, neutralised, without trailing spaces and runs of blank lines. Idempotent."""
    text = neutralise(unicodedata.normalize("NFC", text))
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return _MANY_NEWLINES.sub("\n\n", lines).strip()


def one_line(label: str) -> str:
    """An id or title without control characters and line breaks."""
    return " ".join(neutralise(unicodedata.normalize("NFC", label)).split())


def clean(documents: Iterable[RawDocument], min_chars: int, tally: Tally | None = None) -> Iterator[RawDocument]:
    """Normalised `documents`; those under `min_chars` and exact repetitions of earlier ones are dropped and counted.

    Ids become unique: a second "a" is "a~2".
    """
    tally = tally if tally is not None else Tally()
    seen: set[bytes] = set()
    ids: set[str] = set()
    for document in documents:
        text = normalise(document.text)
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
        if len(text) < min_chars:
            tally.num_too_short += 1
        elif digest in seen:
            tally.num_duplicate += 1
        else:
            seen.add(digest)
            tally.num_kept += 1
            doc_id = _unique(one_line(document.doc_id), ids)
            yield replace(document, doc_id=doc_id, title=one_line(document.title[:_MAX_TITLE_CHARS]), text=text)


def _unique(doc_id: str, ids: set[str]) -> str:
    candidate, number = doc_id, 1
    while candidate in ids:
        number += 1
        candidate = f"{doc_id}~{number}"
    ids.add(candidate)
    return candidate
