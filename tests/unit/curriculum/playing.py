"""Curricula without documents, and rounds that were never played, for tests of the dynamics."""

import numpy as np

from megatron_spell.config.schema import RunConfig
from megatron_spell.curriculum.curriculum import Catalog, Curriculum, SetEntry
from megatron_spell.types.play import Answer, Completion, Draw, Outcome, ParsedQuestion, Role, Round, TaskName, Turn

CATALOG = Catalog(tuple(SetEntry(f"set-{n}", (100,) * 20) for n in range(4)))
ONE_SET = Catalog((SetEntry("only", (100,) * 22),))
WIDE = {"start_tokens": 5000, "max_tokens": 5000}  # a budget that never stands in the way of history
QA_ONLY = {TaskName.GENERAL_QA: 1.0}
EMPTY = np.zeros(0, dtype=np.int32)
TURN = Turn(Role.RESPONDER, EMPTY, Completion(EMPTY, EMPTY, "stop", 0), "")


def make_curriculum(catalog=CATALOG, seed=0, weights=None, play=None, algo=None, **curriculum) -> Curriculum:
    length = {"start_tokens": 1000, "max_tokens": 2000, "window": 2} | curriculum.pop("length", {})
    config = RunConfig(
        name="test",
        run_folder="run",
        model={"path": "model"},
        data={"store": "store.h5"} | ({"task_weights": weights} if weights else {}),
        play=play or {},
        algo=algo or {},
        curriculum={"length": length} | curriculum,
    )
    return Curriculum(config, catalog, seed)


def played(draw: Draw, rewards=(1.0, 0.0), outcome=Outcome.USABLE, question: str | None = None) -> Round:
    """A round on `draw`, its question unlike any other unless given."""
    words = question or " ".join(f"w{draw.index}x{n}" for n in range(6))
    answers_G = tuple(Answer(TURN, "x", reward, reward=reward) for reward in rewards)
    return Round(draw, outcome, ask=TURN, question=ParsedQuestion(words, "gold"), answers_G=answers_G)


def play_on(curriculum: Curriculum, indices, **kind) -> list[Draw]:
    draws = []
    for index in indices:
        draws.append(curriculum.draw(index))
        curriculum.observe([played(draws[-1], **kind)])
    return draws
