"""How much of what responders read is a prefix that an earlier round of the same step has read before.

    python benchmarks/shared_prefixes.py STORE [--budgets 4096 16384 65536] [--draws 320] [--steps 4] [--separator 2]

Only documents are counted, in tokens, and the cache is taken to hold a whole step (a new policy empties it). Readings
are those of the curriculum ("by set": seeded by set and epoch), the same with every draw choosing anew ("by draw"), and
by set with the three tasks of a set drawn one after the other ("together"), which the sampler does not do. "sets" is
how many different sets a step asks about. The figure is the mean over steps.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from megatron_spell.config.schema import RunConfig
from megatron_spell.curriculum.curriculum import Catalog, Curriculum, SetEntry
from megatron_spell.curriculum.reading import Shelf
from megatron_spell.data.store import TokenStore
from megatron_spell.types.play import Draw

Reading = list[tuple[str, int]]  # set and document, in the order they are read
NUM_TASKS = 3


def reading_of(draw: Draw) -> Reading:
    documents = [(draw.set_id, document) for document in draw.answer_from]
    for distractor in draw.distractors:
        documents.insert(distractor.place, (distractor.set_id, distractor.document))
    return documents


def shared_share(readings: Iterable[Reading], tokens: Callable[[Reading], int]) -> float:
    """Tokens that stand in the longest prefix common with an earlier reading, by all tokens."""
    tree: dict[tuple[int, tuple[str, int]], int] = {}  # (node, document) -> node; 0 is the root
    shared = total = 0
    for reading in readings:
        node = known = 0
        for number, document in enumerate(reading):
            known += known == number and (node, document) in tree
            node = tree.setdefault((node, document), len(tree) + 1)
        shared, total = shared + tokens(reading[:known]), total + tokens(reading)
    return shared / total


def by_draw(draw: Draw, shelf: Shelf) -> Reading:
    chosen = shelf.read(draw.set_id, draw.shown, draw.budget_tokens or 0, 10**6 + draw.index, from_other_sets=True)
    return reading_of(Draw(draw.index, draw.set_id, draw.task, draw.shown, chosen.own, distractors=chosen.distractors))


def together(draw: Draw, curriculum: Curriculum, shelf: Shelf) -> Reading:
    """What the draw would read on the set of the first of its three; what it is shown stays its own."""
    set_id = curriculum.draw(draw.index - draw.index % NUM_TASKS).set_id
    costs = shelf.costs(set_id)
    shown = np.random.default_rng(draw.index).permutation(len(costs))[: len(draw.shown)].tolist()
    while len(shown) > 1 and shelf.tokens(set_id, shown) > (draw.budget_tokens or 0):
        shown.pop()
    chosen = shelf.read(set_id, sorted(shown), draw.budget_tokens or 0, 0, from_other_sets=True)
    return reading_of(Draw(draw.index, set_id, draw.task, (), chosen.own, distractors=chosen.distractors))


def measure(store: TokenStore, budget: int, options: argparse.Namespace) -> dict[str, float]:
    config = RunConfig.model_validate(
        {
            "name": "measured",
            "run_folder": "unused",
            "model": {"path": "unused"},
            "data": {"store": options.store},
            "curriculum": {"length": {"start_tokens": budget, "max_tokens": budget}},
        }
    )
    entries = (SetEntry(set_id, store.document_lengths(set_id)) for set_id in store.set_ids("train"))
    sets = Catalog(tuple(entries), options.separator)
    curriculum = Curriculum(config, sets, seed=0)
    shelf = Shelf({one.set_id: one.document_tokens for one in sets.sets}, options.separator, seed=0)
    figures: dict[str, list[float]] = {"by set": [], "by draw": [], "together": [], "sets": []}
    for step in range(options.steps):
        draws = [curriculum.draw(index) for index in range(step * options.draws, (step + 1) * options.draws)]
        figures["by set"].append(shared_share(map(reading_of, draws), tokens_in(shelf)))
        figures["by draw"].append(shared_share((by_draw(draw, shelf) for draw in draws), tokens_in(shelf)))
        mixed = (together(draw, curriculum, shelf) for draw in draws)
        figures["together"].append(shared_share(mixed, tokens_in(shelf)))
        figures["sets"].append(len({draw.set_id for draw in draws}))
    return {name: float(np.mean(values)) for name, values in figures.items()}


def tokens_in(shelf: Shelf) -> Callable[[Reading], int]:
    return lambda reading: sum(shelf.costs(set_id)[document] for set_id, document in reading)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--budgets", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--draws", type=int, default=320)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--separator", type=int, default=2, help="tokens between two documents of a prompt")
    options = parser.parse_args()
    table = Table("budget", "by set", "by draw", "together", "sets in a step")
    with TokenStore.open(options.store) as store:
        for budget in options.budgets:
            found = measure(store, budget, options)
            shares = [f"{found[name]:.1%}" for name in ("by set", "by draw", "together")]
            table.add_row(str(budget), *shares, f"{found['sets']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
