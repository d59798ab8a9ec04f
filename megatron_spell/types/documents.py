"""Documents and sets of related documents, as token ids."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One document of a set.

    `token_ids_T` are int32 ids of the run's tokenizer, written when the store was built; nothing re-tokenises them.
    """

    doc_id: str
    title: str
    token_ids_T: np.ndarray

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids_T.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class DocumentSet:
    """About 20 related documents; the unit a round is played on.

    `split` is "train" or "heldout": held-out sets are never drawn for play.
    """

    set_id: str
    split: str
    documents: tuple[Document, ...]

    @property
    def num_tokens(self) -> int:
        return sum(d.num_tokens for d in self.documents)
