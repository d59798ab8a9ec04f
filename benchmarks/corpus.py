"""What every step of `data build` costs before tokenising, on a corpus made of the sentences of real texts.

    python benchmarks/corpus.py TEXTS.jsonl... [--text-field text --text-field document] [--megabytes 200] [--workers 1]
        [--decontaminate FILE...] --work FOLDER

Documents are 1 to 8 paragraphs of 6 sentences drawn anew; 5 % are an earlier document with one word changed, 2 % an
earlier one. The filters are those of `--filters web`. Seconds are of the processor, of this process and its workers
that have ended, so that a busy machine counts less; memory is the peak of resident memory so far. Given again it goes
on from FOLDER; what was done is then not measured.
"""

import argparse
import json
import random
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

from megatron_spell.data.corpus.plan import CorpusPlanner
from megatron_spell.data.corpus.settings import PRESETS, CorpusSettings
from megatron_spell.data.corpus.work import WorkFolder
from megatron_spell.data.readers.slices import ReadOptions
from megatron_spell.data.readers.source import read_source
from megatron_spell.data.settings import BuildSettings

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_RECENT = 2000  # documents that are repeated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--text-field", action="append")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--decontaminate", nargs="*", type=Path, default=[])
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    source = options.work / f"corpus-{options.megabytes}.jsonl"
    if not source.exists():
        write_corpus(source, sentences(options.texts, options.text_field or ["text"]), options.megabytes * 10**6)
    settings = CorpusSettings(filters=PRESETS["web"], decontaminate=tuple(options.decontaminate))
    clock = Clock()
    with WorkFolder(options.work / "steps") as work:
        planner = CorpusPlanner(BuildSettings(set_size=20, min_chars=100), settings, work, options.workers, steps=clock)
        corpus = planner.plan([str(source)])
    clock.end()
    print(f"{len(corpus.verdicts)} documents, {corpus.num_kept} kept, {len(corpus.sets)} sets")
    print({reason: num for reason, num in corpus.num_dropped.items() if num})


def sentences(sources: list[str], fields: list[str]) -> list[str]:
    texts = (unit.text for one in sources for unit in read_source(one, None, ReadOptions(tuple(fields))))
    return [s.strip() for text in texts for s in _SENTENCE.split(text) if 40 < len(s) < 400]


def write_corpus(path: Path, known: list[str], num_bytes: int) -> None:
    draw, recent, size = random.Random(0), [], 0
    draft = path.with_suffix(".tmp")
    with draft.open("w", encoding="utf-8") as file:
        while size < num_bytes:
            chance = draw.random() if recent else 1.0
            if chance < 0.02:
                text = draw.choice(recent)
            elif chance < 0.07:
                words = draw.choice(recent).split()
                words[draw.randrange(len(words))] = "changed"
                text = " ".join(words)
            else:
                text = "\n\n".join(" ".join(draw.choices(known, k=6)) for _ in range(draw.randrange(1, 9)))
                recent = [*recent[1 - _RECENT :], text]
            size += file.write(json.dumps({"text": text}) + "\n")
    draft.replace(path)


class Clock:
    """Prints what each step took when the next begins."""

    def __init__(self) -> None:
        self._step = ""

    def __call__(self, step: str, total: int) -> Callable[[int], None]:
        self.end()
        self._step, self._start, self._began = step, _processor_s(), time.monotonic()
        return lambda done: None

    def end(self) -> None:
        if self._step:
            seconds, wall_s = _processor_s() - self._start, time.monotonic() - self._began
            own, worker = (usage.ru_maxrss // 1024 for usage in _usages())
            print(f"{self._step:>16}  {seconds:7.1f} s of the processor  {wall_s:7.1f} s  {own} MiB, a worker {worker}")


def _usages() -> list[resource.struct_rusage]:
    return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]


def _processor_s() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in _usages())


if __name__ == "__main__":
    main()
