"""A document on its way from a source to a set."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RawDocument:
    """One document as a source gave it.

    Documents of one `group` (a topic, a file, a record) continue each other; a group is never divided between
    training and held-out sets. `source` is the source's name as the store lists it.
    """

    doc_id: str
    title: str
    text: str
    group: str
    source: str = ""
