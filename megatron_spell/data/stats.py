"""Lengths of a store's documents and sets, by split and by source; reads no tokens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_spell.data.file_format import SPLITS
from megatron_spell.data.store import TokenStore

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BINS = 40


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of `num` things; `quantiles` are at QUANTILES, the shortest of two neighbours where it lies between them."""

    num: int
    total: int
    mean: float
    shortest: int
    quantiles: tuple[int, ...]
    longest: int

    @classmethod
    def of(cls, lengths: np.ndarray) -> "Lengths":
        """`lengths` are integers (num,), num at least 1."""
        quantiles = tuple(np.quantile(lengths, QUANTILES, method="lower").astype(int).tolist())
        total = int(lengths.sum())
        return cls(len(lengths), total, total / len(lengths), int(lengths.min()), quantiles, int(lengths.max()))


@dataclass(frozen=True, slots=True)
class Share:
    """What falls to one split or one source."""

    name: str
    num_sets: int  # in which it has a document
    num_documents: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    document_tokens: Lengths
    set_tokens: Lengths
    set_documents: Lengths
    splits: tuple[Share, ...]
    sources: tuple[Share, ...]


def statistics_of(store: TokenStore) -> StoreStatistics:
    """Raises StoreError."""
    document_tokens, set_sizes = store.all_document_lengths(), store.set_sizes()
    sets = np.repeat(np.arange(len(set_sizes)), set_sizes)
    return StoreStatistics(
        document_tokens=Lengths.of(document_tokens),
        set_tokens=Lengths.of(set_tokens(store)),
        set_documents=Lengths.of(set_sizes),
        splits=_shares(SPLITS, store.all_splits()[sets], sets, document_tokens),
        sources=_shares(store.sources, store.document_sources(), sets, document_tokens),
    )


def set_tokens(store: TokenStore) -> np.ndarray:
    """int64 tokens of every set, in the store's order."""
    starts = np.concatenate([[0], np.cumsum(store.set_sizes())[:-1]])
    return np.add.reduceat(store.all_document_lengths(), starts)


def plot_lengths(store: TokenStore, path: Path) -> None:
    """Histograms of document and set lengths, by split, and tokens by source. Raises OSError, ValueError (suffix)."""
    from matplotlib.figure import Figure

    statistics = statistics_of(store)
    figure = Figure(figsize=(8, 7.5 + 0.25 * len(statistics.sources)), layout="constrained")
    documents, sets, sources = figure.subplots(3, 1, height_ratios=[3, 3, 1 + 0.25 * len(statistics.sources)])
    splits = store.all_splits()
    _histogram(documents, store.all_document_lengths(), np.repeat(splits, store.set_sizes()), "document")
    _histogram(sets, set_tokens(store), splits, "set")
    # Names come from files: "$" in one is only a character.
    names = [share.name.replace("$", r"\$") for share in statistics.sources]
    sources.barh(range(len(names)), [share.num_tokens for share in statistics.sources], color="C2")
    sources.set_yticks(range(len(names)), names)
    sources.invert_yaxis()
    sources.set_xlabel("tokens of each source")
    figure.suptitle(store.path.name.replace("$", r"\$"))
    figure.savefig(path)


def _histogram(axes, lengths: np.ndarray, splits: np.ndarray, what: str) -> None:
    low, high = int(lengths.min()), int(lengths.max())
    wide = high > 20 * low
    # Between whole numbers, or bins would differ in how many of them they hold.
    step = -(-(high - low + 1) // _BINS)
    edges = np.geomspace(low, high + 1, _BINS).astype(int) if wide else np.arange(low, high + step + 1, step)
    bins = np.unique(edges) - 0.5
    axes.hist([lengths[splits == n] for n in range(len(SPLITS))], bins, stacked=True, label=SPLITS)
    if wide:
        axes.set_xscale("log")
    axes.set_xlabel(f"tokens of a {what} (median {int(np.median(lengths)):,})")
    axes.set_ylabel(f"{what}s")
    axes.legend()


def _shares(names: tuple[str, ...], of_document: np.ndarray, sets: np.ndarray, tokens: np.ndarray) -> tuple[Share, ...]:
    num_sets = np.bincount(
        np.unique(of_document.astype(np.int64) + len(names) * sets) % len(names), minlength=len(names)
    )
    num_documents = np.bincount(of_document, minlength=len(names))
    num_tokens = np.bincount(of_document, tokens, minlength=len(names))  # exact: far below 2^53
    return tuple(
        Share(name, int(num_sets[n]), int(num_documents[n]), int(num_tokens[n])) for n, name in enumerate(names)
    )
