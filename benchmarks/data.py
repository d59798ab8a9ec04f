"""What a token store costs: reading a random set beside a plain memmap, and building beside the bare tokenizer.

    python benchmarks/data.py [--source python-topics ... --tokenizer FOLDER --max-chars 4000 --json FILE]

Reading: a store of `--sets` sets of about 16K tokens, made of the sources' own token ids so that they compress as they
do, is opened once and its sets are read in random order, every set once: all documents with ids and titles. `memmap` is
a copy of the same ids out of one flat file of int32, without ids, titles or checks. The files have just been written,
so both come from the page cache; the index is in memory. Milliseconds are for 16,384 tokens, by the clock.

Building: the same texts, already read and grouped, go through `write_sets` and `finish` into a store on disk, journal,
checksums and compression included. The bare tokenizer is one call for all texts (`encode_batch_fast`, parallel by
itself over the same number of threads) whose ids are handed over as arrays; `call alone` leaves them in the library.
`whole build` is `build_store`, with reading, cleaning and grouping. All ways run in turn in every repeat and a ratio is
of two ways of one repeat, so that a busy machine slows both; "by processor time" other programs add nothing to. The
first round warms up.

Exit code 1 when the median read takes LIMIT_MS or more, or building reaches less than LEAST_RATIO of the bare
tokenizer.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as Backend

from megatron_spell.data.build import build_store, read_sources
from megatron_spell.data.clean import clean
from megatron_spell.data.cluster import PlannedSet
from megatron_spell.data.errors import BuildError, SourceError
from megatron_spell.data.settings import BuildSettings
from megatron_spell.data.store import TokenStore
from megatron_spell.data.tokenise import num_cores, write_sets
from megatron_spell.data.write import Origin, StoreWriter
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.documents import Document, DocumentSet

LIMIT_MS = 1.0
LEAST_RATIO = 0.8
READ_TOKENS = 16_384
_DOCUMENTS_A_SET = 20
_QUICKSTART = Path(__file__).parents[1] / "examples/quickstart/base_model"


def write_read_store(path: Path, token_ids: np.ndarray, num_sets: int) -> None:
    """`num_sets` sets of READ_TOKENS ids, out of `token_ids` at places of their own, and `path`.ids beside it."""
    rng = np.random.default_rng(0)
    flat = np.tile(token_ids, -(-2 * READ_TOKENS // len(token_ids)))
    with StoreWriter(path, num_cores()) as writer, path.with_suffix(".ids").open("wb") as plain:
        for number in range(num_sets):
            start = rng.integers(len(flat) - READ_TOKENS)
            parts = np.array_split(flat[start : start + READ_TOKENS], _DOCUMENTS_A_SET)
            named = [Document(f"set {number}/document {n}", f"Document {n}", ids) for n, ids in enumerate(parts)]
            writer.add(DocumentSet(f"set-{number:05}", "train", tuple(named)), [Origin("", "", b" " * 16)] * len(named))
            plain.write(flat[start : start + READ_TOKENS].tobytes())
        writer.finish(fingerprint="", sources=[], settings={}, counts={})


def read_ms(path: Path, num_sets: int) -> dict[str, list[float]]:
    """Milliseconds of every read: "store" and "memmap", in the same random order. Raises SystemExit on wrong ids."""
    took: dict[str, list[float]] = {"store": [], "memmap": []}
    plain = np.memmap(path.with_suffix(".ids"), np.int32, "r").reshape(num_sets, READ_TOKENS)
    with TokenStore.open(path) as store:
        for number in np.random.default_rng(1).permutation(num_sets):
            set_id, began = f"set-{number:05}", time.perf_counter()
            read = store.document_set(set_id)
            between = time.perf_counter()
            wanted = np.array(plain[number])
            took["memmap"].append((time.perf_counter() - between) * 1e3)
            took["store"].append((between - began) * 1e3)
            if not np.array_equal(np.concatenate([d.token_ids_T for d in read.documents]), wanted):
                raise SystemExit(f"FELL SHORT: {set_id} holds other ids than were written")
    return took


@dataclass(slots=True)
class Took:
    """Seconds of every repeat; `processor` adds up all threads."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


class Building:
    """The ways to tokenise the same texts, on the same cores."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.tokenizer = Tokenizer.load(options.tokenizer)
        self.options, self.out = options, folder / "built.h5"
        self.backend = Backend.from_str(self.tokenizer.pretrained.backend_tokenizer.to_str())
        self.backend.encode_special_tokens = True
        self.settings = BuildSettings(max_chars=options.max_chars)
        documents = list(clean(read_sources(options.source, self.settings), self.settings.min_chars))
        documents = [replace(d, doc_id=f"{d.doc_id}.{n}") for n in range(options.copies) for d in documents]
        self.texts = [document.text for document in documents]
        size = self.settings.set_size
        cuts = range(0, len(documents), size)
        self.planned = [PlannedSet(f"set-{at // size:05}", "train", tuple(documents[at : at + size])) for at in cuts]

    def ways(self) -> dict[str, Callable[[], object]]:
        return {"bare": self.bare, "call alone": self.call, "store": self.store, "whole build": self.build}

    def call(self) -> list:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        try:
            return self.backend.encode_batch_fast(self.texts, add_special_tokens=False)
        finally:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def bare(self) -> list[np.ndarray]:
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in self.call()]

    def store(self) -> None:
        with StoreWriter(self.out, self.options.workers) as writer:
            write_sets(self.planned, self.tokenizer, writer, self.options.workers)
            writer.finish(fingerprint=self.tokenizer.fingerprint, sources=self.options.source, settings={}, counts={})

    def build(self) -> None:
        build_store(self.options.source, self.tokenizer, self.out, self.settings, workers=self.options.workers)

    def seconds(self, repeats: int) -> dict[str, Took]:
        """Of every way in every repeat; the whole build reads each text once, whatever `copies` says."""
        took = {way: Took() for way in self.ways()}
        for repeat in range(-1, repeats):
            for way, run in self.ways().items():
                copies = self.options.copies if way == "whole build" else 1
                began, worked = time.perf_counter(), time.process_time()
                run()
                if repeat >= 0:
                    took[way].clock.append((time.perf_counter() - began) * copies)
                    took[way].processor.append((time.process_time() - worked) * copies)
        return took


def ratios(way: list[float], bare: list[float]) -> list[float]:
    """The rate of a way as a share of the bare tokenizer's, in each repeat."""
    return [b / w for w, b in zip(way, bare, strict=True)]


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def show(console: Console, reads: dict[str, list[float]], took: dict[str, Took], num_tokens: int) -> None:
    table = Table("read", "ms a 16K tokens", "95 %", title=f"{len(reads['store'])} random sets", title_justify="left")
    for way, its in reads.items():
        table.add_row(way, spread(its, 3), f"{np.quantile(its, 0.95):.3f}")
    console.print(table)
    columns = ("M tokens/s", "of bare", "by processor time")
    table = Table("tokenise", *columns, title="median (range)", title_justify="left")
    for way, its in took.items():
        shares = (ratios(its.clock, took["bare"].clock), ratios(its.processor, took["bare"].processor))
        table.add_row(way, spread([num_tokens / s / 1e6 for s in its.clock]), *map(spread, shares))
    console.print(table)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", help="as for `data build`; may be repeated")
    parser.add_argument("--tokenizer", type=Path, default=_QUICKSTART)
    parser.add_argument("--copies", type=int, default=1, help="of every text, for short sources")
    parser.add_argument("--max-chars", type=int, default=4000, help="of a document; longer ones are cut")
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--workers", type=int, default=num_cores())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write every read and repeat there")
    options = parser.parse_args()
    options.source = options.source or ["python-topics"]
    return options


def main() -> int:
    options, console = read_options(), Console(width=120, markup=False, highlight=False)
    os.environ["RAYON_NUM_THREADS"] = str(options.workers)  # before the library starts its threads
    with tempfile.TemporaryDirectory() as folder:
        try:
            building = Building(options, Path(folder))
        except (SourceError, BuildError) as error:
            print(error, file=sys.stderr)
            return 2
        token_ids = np.concatenate(building.bare())
        path = Path(folder) / "read.h5"
        write_read_store(path, token_ids, options.sets)
        reads, took = read_ms(path, options.sets), building.seconds(options.repeats)
        disk = path.stat().st_size / options.sets / READ_TOKENS
    length = len(token_ids) / len(building.texts)
    console.print(
        f"{', '.join(options.source)}: {len(building.texts):,} texts of {length:,.0f} tokens, vocabulary"
        f" {building.tokenizer.vocab_size:,}, {disk:.2f} bytes a token on disk; {options.workers} workers,"
        f" {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    show(console, reads, took, len(token_ids))
    if options.json:
        seconds = {way: asdict(its) for way, its in took.items()}
        options.json.write_text(json.dumps({"read_ms": reads, "seconds": seconds, "num_tokens": len(token_ids)}) + "\n")
    reached = statistics.median(ratios(took["store"].clock, took["bare"].clock))
    return verdict(console, statistics.median(reads["store"]), reached)


def verdict(console: Console, ms: float, ratio: float) -> int:
    """Exit code."""
    if ms >= LIMIT_MS:
        console.print(f"FELL SHORT: a read takes {ms:.2f} ms, less than {LIMIT_MS:g} is asked for")
    if ratio < LEAST_RATIO:
        console.print(f"FELL SHORT: building reaches {ratio:.2f} of the bare tokenizer, {LEAST_RATIO:g} is asked for")
    return int(ms >= LIMIT_MS or ratio < LEAST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
