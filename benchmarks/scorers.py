"""How fast answers are read and scored, and the longest that any call takes on text made to be slow.

    python benchmarks/scorers.py [--records 3000 --fuzz 3000 --seed 0 --json FILE]

Records are responses of every task, right and wrong, of the length that `--chars` gives; `read` is what play does with
a response, `score` with the answer that was read. The fuzz input is fragments that the patterns look for (numbers,
commas, "answer is", LaTeX, dates, hyphens ...), repeated and mixed at random, up to a million characters.

Seconds are of the processor, in this one thread, so that other programs do not add to them; a call that seems long is
repeated and its shortest time counts. Exit code 1 when a call takes longer than LIMIT_MS.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_spell.rewards.matching import score
from megatron_spell.roles.responder import parse_answer
from megatron_spell.types.play import TaskName

LIMIT_MS = 50.0
TOLERANCE = 0.0015
SIZES = (20, 200, 2_000, 100_000, 1_000_000)
_REPEATS = 5

FRAGMENTS = (
    *(
        "a",
        "ab ",
        "1",
        "1,",
        "1 ",
        "1/",
        "1'",
        "12.5%",
        "-",
        ".",
        ",",
        " ",
        "\n",
        "(",
        ")",
        "$",
        "=",
        "*",
        "'",
        "\u6771",
    ),
    *(
        "answer is ",
        "answer",
        "answer:",
        "\nanswer:",
        "the ",
        "of ",
        "or ",
        "1 or ",
        "and ",
        "to ",
        "A, ",
        "(A) ",
        "A ",
    ),
    *(
        "\\boxed{",
        "\\frac{",
        "\\frac{1}{2}",
        "}",
        "\\text{",
        "$a",
        "\\$",
        "**",
        "<think>",
        "</think>",
        "\u00bd",
        "\u00b2",
    ),
    *("10^", "10 x 10", "x 10^3", "1e", "e1", "million ", "in ", "in millions", "per ", "percent", "decrease ", "5 m "),
    *(
        "1 jan ",
        "jan 1 ",
        "1969-",
        "1969-07-20 ",
        "j. ",
        "a-b-",
        "x-",
        "not ",
        "minus ",
        "approximately ",
        "\x00",
        "\u2212",
    ),
)


@dataclass(frozen=True, slots=True)
class Call:
    ms: float
    what: str
    num_chars: int
    begins: str


@dataclass(frozen=True, slots=True)
class Rate:
    task: str
    what: str
    per_second: float
    right: float


def processor_s(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


def fuzz(count: int, rng: random.Random, sizes: tuple[int, ...] = SIZES) -> Iterator[str]:
    """Every fragment repeated to every size, then `count` mixtures of a few; the long ones are rarer."""
    for size in sizes:
        for fragment in FRAGMENTS:
            yield (fragment * (size // len(fragment) + 1))[:size]
    weights = [1 / size**0.5 for size in sizes]
    for _ in range(count):
        (size,) = rng.choices(sizes, weights)
        chosen = rng.sample(FRAGMENTS, rng.randint(1, 5))
        mixed = "".join(rng.choices(chosen, k=min(size, 200)))
        yield (mixed * (size // len(mixed) + 1))[:size] + rng.choice(["", "5", "x", ")", "}", "\n5"])


def calls(text: str, task: TaskName) -> dict[str, Callable[[], object]]:
    """All ways in which `text` can reach the scorers of `task`."""
    short = text[: max(1, len(text) // 3)]
    return {
        f"{task}: read": lambda: parse_answer(text, task),
        f"{task}: read after 'answer is'": lambda: parse_answer("The answer is " + text, task),
        f"{task}: read in a box": lambda: parse_answer("\\boxed{" + text, task),
        f"{task}: score as prediction and gold": lambda: score(task, text, text, tolerance=TOLERANCE),
        f"{task}: score against a part": lambda: score(task, text[:2000], short[:600], tolerance=TOLERANCE),
        f"{task}: score a number against": lambda: score(task, "5" + text[:199], text[:200], tolerance=TOLERANCE),
    }


def longest_calls(texts: Iterator[str], tasks: tuple[TaskName, ...] = tuple(TaskName), keep: int = 5) -> list[Call]:
    """The `keep` longest calls over all texts, the longest first."""
    found: list[Call] = []
    for text in texts:
        for task in tasks:
            for what, call in calls(text, task).items():
                seconds = processor_s(call)
                if len(found) < keep or seconds * 1e3 > found[-1].ms:
                    seconds = min([seconds, *(processor_s(call) for _ in range(_REPEATS))])
                    found.append(Call(seconds * 1e3, what, len(text), text[:20]))
                    found = sorted(found, key=lambda each: -each.ms)[:keep]
    return found


def records(count: int, chars: int, rng: random.Random) -> Iterator[tuple[TaskName, str, str]]:
    """(task, response, gold); half of the responses are right."""
    for number in range(count):
        task, right = list(TaskName)[number % 3], rng.random() < 0.5
        value = rng.randint(-(10**6), 10**6) / 100
        if task == TaskName.MATH_QA:
            gold, said = repr(value), rng.choice(["${:,.2f}", "{:.2f}", "approximately {:,.2f}"])
            said = said.format(value if right else -value + 1).replace("$-", "-$")
        elif task == TaskName.MULTIPLE_CHOICE:
            gold = rng.choice("ABCD")
            said = f"({gold if right else 'ABCD'['BCDA'.index(gold)]}) because of the figures"
        else:
            gold = f"{rng.choice(['Marie', 'Ada', 'Lise'])} {rng.choice(['Curie', 'Lovelace', 'Meitner'])}"
            said = f"{'the physicist' if right else 'not'} {gold}"
        thought = ("The report gives 1,250.5 in 2018, so we go on from there. " * (chars // 58 + 1))[:chars]
        yield task, f"{thought}\nTherefore, the answer is {said}.", gold


def rates(made: list[tuple[TaskName, str, str]]) -> list[Rate]:
    found = []
    for task in TaskName:
        mine = [(said, gold) for of, said, gold in made if of == task]
        read_s = processor_s(lambda mine=mine, task=task: [parse_answer(said, task) for said, _ in mine])
        answers = [(parse_answer(said, task), gold) for said, gold in mine]
        scores: list[float] = []
        score_s = processor_s(
            lambda answers=answers, task=task, scores=scores: scores.extend(
                score(task, answer, gold, tolerance=TOLERANCE) for answer, gold in answers
            )
        )
        right = sum(scores) / len(scores)
        found += [Rate(task, "read", len(mine) / read_s, right), Rate(task, "score", len(mine) / score_s, right)]
        found.append(Rate(task, "both", len(mine) / (read_s + score_s), right))
    return found


def show(console: Console, found: list[Rate], longest: list[Call]) -> None:
    table = Table("task", "what", "records a second", "right", title="one thread", title_justify="left")
    for rate in found:
        table.add_row(rate.task, rate.what, f"{rate.per_second:,.0f}", f"{rate.right:.0%}")
    console.print(table)
    table = Table("ms", "call", "characters", "begins with", title="the longest calls", title_justify="left")
    for call in longest:
        table.add_row(f"{call.ms:.1f}", call.what, f"{call.num_chars:,}", repr(call.begins))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--chars", type=int, default=4000, help="of the reasoning before the answer")
    parser.add_argument("--fuzz", type=int, default=3000, help="random mixtures, beside all plain repetitions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options, console = parser.parse_args(), Console(width=120, markup=False, highlight=False)
    rng = random.Random(options.seed)
    found = rates(list(records(options.records, options.chars, rng)))
    longest = longest_calls(fuzz(options.fuzz, rng))
    console.print(
        f"{options.records} records of {options.chars} characters, {options.fuzz} mixtures, python"
        f" {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    show(console, found, longest)
    if options.json:
        figures = {"rates": [asdict(rate) for rate in found], "longest": [asdict(call) for call in longest]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if longest[0].ms > LIMIT_MS:
        console.print(f"FELL SHORT: a call took {longest[0].ms:.1f} ms, {LIMIT_MS:g} are allowed")
    return int(longest[0].ms > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
