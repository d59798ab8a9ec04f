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
    documents: list[RawDocument]
    digest: bytes  # of the tokenizer and all texts
    digests: list[bytes]  # of each document

    @classmethod
    def of(cls, documents: list[RawDocument], fingerprint: str) -> "_Batch":
        digests = [document_digest(document.text) for document in documents]
        return cls(documents, hashlib.sha256(b"".join([fingerprint.encode(), *digests])).digest(), digests)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def write_sets(planned: Iterable[PlannedSet], tokenizer: StoreTokenizer, writer: StoreWriter, workers: int) -> None:
    """Tokenise `planned` in `workers` threads and add all of it to `writer`, in its order.

    At most 2 * `workers` + 1 batches of about BATCH_CHARS characters (or one longer document) and one set are held at
    a time. What the writer's journal holds is taken from there. Raises BuildError.
    """
    begun: deque[PlannedSet] = deque()

    def documents() -> Iterator[RawDocument]:
        for one in planned:
            begun.append(one)
            yield from one.documents

    finished: list[tuple[Document, Origin]] = []
    batches = _batches(documents(), tokenizer.fingerprint)
    for batch, token_ids in _tokenised(batches, tokenizer, writer.journal, workers):
        for raw, ids, digest in zip(batch.documents, token_ids, batch.digests, strict=True):
            finished.append((Document(raw.doc_id, raw.title, ids), Origin(raw.source, raw.group, digest)))
            if len(finished) == len(begun[0].documents):
                one, (stored, origins) = begun.popleft(), zip(*finished)
                writer.add(DocumentSet(one.set_id, one.split, stored), origins)
                finished = []


def _batches(documents: Iterable[RawDocument], fingerprint: str) -> Iterator[_Batch]:
    """The same batches whatever the number of workers, so that a journal fits any."""
    batch, num_chars = [], 0
    for document in documents:
        batch.append(document)
        num_chars += len(document.text)
        if num_chars >= BATCH_CHARS:
            yield _Batch.of(batch, fingerprint)
            batch, num_chars = [], 0
    if batch:
        yield _Batch.of(batch, fingerprint)


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
