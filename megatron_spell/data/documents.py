"""Documents and ready sets on their way from a source to a store."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class RawDocument:
    """One document as a source gave it.

    Documents of one `group` (a topic, a file, a record) continue each other; a group is never divided between
    training and held-out sets. `source` is the source's name as the store lists it; `quality` is the score that the
    record carries, None where it carries none.
    """

    doc_id: str
    title: str
    text: str
    group: str
    source: str = ""
    quality: float | None = None


@dataclass(frozen=True, slots=True)
class RawSet:
    """Documents that a source gave as one set: it is used as it stands, never cut, mixed or divided.

    `hint` says what its source is meant for: "math", "text" (general questions and multiple choice), "" for any.
    """

    group: str
    documents: tuple[RawDocument, ...]
    hint: str = ""
    quality: float | None = None

    @property
    def text(self) -> str:
        return "\n\n".join(document.text for document in self.documents)


@dataclass(frozen=True, slots=True)
class Fault:
    """A record or file that cannot be read; `message` is one line that names file, place and way out."""

    path: str
    message: str


Unit = RawDocument | RawSet  # what is kept or dropped as a whole


def documents_of(unit: Unit) -> tuple[RawDocument, ...]:
    return unit.documents if isinstance(unit, RawSet) else (unit,)


def from_source(unit: Unit, source: str) -> Unit:
    """`unit` with all its documents marked as read from `source`."""
    if isinstance(unit, RawDocument):
        return replace(unit, source=source)
    return replace(unit, documents=tuple(replace(document, source=source) for document in unit.documents))
