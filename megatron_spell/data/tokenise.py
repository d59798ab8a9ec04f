"""Planned sets -> token ids in a store: in batches, on all cores, going on where a killed build stopped."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_spell.data.cluster import PlannedSet
from megatron_spell.data.documents import RawDocument
from megatron_spell.data.errors import BuildError
from megatron_spell.data.file_format import document_digest
from megatron_spell.data.journal import TokenJournal
from megatron_spell.data.write import Origin, StoreWriter
from megatron_spell.types.documents import Document, DocumentSet

# Enough that handing a batch over costs nothing beside it, little enough to be spread over cores and be repeated.
BATCH_CHARS = 1 << 18
_BATCHES_A_WORKER = 2  # under way or waiting, so that no worker waits while this thread writes


class StoreTokenizer(Protocol):
    """What a build needs of a tokenizer: ids of texts in which special tokens are only characters, and who it is.

    Threads call it side by side.
    """

    fingerprint: str

    def encode_quoted_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    sets: list[PlannedSet]
    digest: bytes  # of the tokenizer and all texts
    digests: list[bytes]  # of each document

    @property
    def documents(self) -> list[RawDocument]:
        return [document for one in self.sets for document in one.documents]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def write_sets(planned: Iterable[PlannedSet], tokenizer: StoreTokenizer, writer: StoreWriter, workers: int) -> None:
    """Tokenise `planned` in `workers` threads and add all of it to `writer`, in its order.

    At most 2 * `workers` + 1 batches of about BATCH_CHARS characters (and whole sets) are held at a time. What the
    writer's journal holds is taken from there. Raises BuildError.
    """
    for batch, token_ids in _tokenised(_batches(planned, tokenizer.fingerprint), tokenizer, writer.journal, workers):
        of_document = iter(zip(batch.documents, token_ids, batch.digests, strict=True))
        for one in batch.sets:
            parts = [next(of_document) for _ in one.documents]
            documents = tuple(Document(d.doc_id, d.title, ids) for d, ids, _ in parts)
            origins = [Origin(d.source, d.group, digest) for d, _, digest in parts]
            writer.add(DocumentSet(one.set_id, one.split, documents), origins)


def _batches(planned: Iterable[PlannedSet], fingerprint: str) -> Iterator[_Batch]:
    """The same batches whatever the number of workers, so that a journal fits any."""
    sets, num_chars = [], 0
    for one in planned:
        sets.append(one)
        num_chars += sum(len(d.text) for d in one.documents)
        if num_chars >= BATCH_CHARS:
            yield _batch(sets, fingerprint)
            sets, num_chars = [], 0
    if sets:
        yield _batch(sets, fingerprint)


def _batch(sets: list[PlannedSet], fingerprint: str) -> _Batch:
    digests = [document_digest(d.text) for one in sets for d in one.documents]
    return _Batch(sets, hashlib.sha256(b"".join([fingerprint.encode(), *digests])).digest(), digests)


def _tokenised(
    batches: Iterable[_Batch], tokenizer: StoreTokenizer, journal: TokenJournal, workers: int
) -> Iterator[tuple[_Batch, Sequence[np.ndarray]]]:
    under_way: deque[tuple[_Batch, Future[list[np.ndarray]]]] = deque()
    threads = ThreadPoolExecutor(workers, thread_name_prefix="tokenise")

    def oldest() -> tuple[_Batch, Sequence[np.ndarray]]:
        batch, future = under_way.popleft()
        token_ids = future.result()
        journal.keep(batch.digest, token_ids)
        return batch, token_ids

    try:
        for batch in batches:
            kept = journal.recall(batch.digest)
            if kept is not None:
                yield batch, kept
                continue
            under_way.append((batch, threads.submit(_encode, batch.documents, tokenizer)))
            if len(under_way) > _BATCHES_A_WORKER * workers:
                yield oldest()
        while under_way:
            yield oldest()
    finally:
        threads.shutdown(cancel_futures=True)


def _encode(documents: Sequence[RawDocument], tokenizer: StoreTokenizer) -> list[np.ndarray]:
    batch = tokenizer.encode_quoted_batch([document.text for document in documents])
    for document, token_ids in zip(documents, batch, strict=True):
        if token_ids.size == 0:
            raise BuildError(
                f"document {document.doc_id} has {len(document.text)} characters and no token; give another tokenizer"
            )
    return batch
