"""Write questions with known answers on the training sets of a token store, for a run that asks none of its own.

    python examples/learning/training_questions.py runs/quickstart/store.h5 --out runs/learning/training_questions.jsonl

One JSON object a line, as examples/quickstart/make_questions.py writes them of held-out sets: set_id, task, question,
gold, documents (the indices shown, as many as for the held-out ones), options for multiple choice.
"""

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "quickstart"
sys.path.insert(0, str(QUICKSTART))

from lookup import LookUp, Spans, look_up  # noqa: E402
from make_questions import LENGTHS, options_parser, read_sets, some_documents  # noqa: E402

from megatron_spell.types.documents import DocumentSet  # noqa: E402
from megatron_spell.types.play import LETTERS, TaskName  # noqa: E402

NUM_QUESTIONS = 3000  # as many as the paper's baseline has
MAX_TRIES = 20  # for each question wanted


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--number", type=int, default=NUM_QUESTIONS, help="of all tasks together, at most")
    options = parser.parse_args()
    tokenizer, sets = read_sets(options, "train")
    made = list(questions(sets, Spans(tokenizer), options.number, options.seed))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in made), encoding="utf-8")
    counts = ", ".join(f"{sum(q['task'] == task for q in made)} {task}" for task in TaskName)
    print(f"{options.out}: {len(made)} questions on {len(sets)} training sets ({counts})")


def questions(sets: Sequence[DocumentSet], spans: Spans, number: int, seed: int) -> Iterator[dict]:
    """Different questions, a third of each task and spread over the sets and lengths, in random order.

    Fewer of a task than that when the texts hold no more: one in 250 words of the reference is a number.
    """
    texts = {one.set_id: [spans.text(document, 0, document.num_tokens) for document in one.documents] for one in sets}
    tasks = (_of_task(sets, texts, task, spans, number // len(TaskName), seed) for task in TaskName)
    made = [question for questions in tasks for question in questions]
    random.Random(seed).shuffle(made)
    yield from made


def _of_task(
    sets: Sequence[DocumentSet],
    texts: Mapping[str, Sequence[str]],
    task: TaskName,
    spans: Spans,
    number: int,
    seed: int,
) -> list[dict]:
    rng, made = random.Random(f"{seed} {task} train"), {}
    for attempt in range(MAX_TRIES * number):
        if len(made) == number:
            break
        one = sets[attempt % len(sets)]
        shown = some_documents(one, LENGTHS[len(made) % len(LENGTHS)], rng)
        found = look_up(task, [one.documents[i] for i in shown], spans, rng)
        # the fragment stands in what is shown only once, so there is one answer
        if found is not None and sum(texts[one.set_id][i].count(found.question) for i in shown) == 1:
            made.setdefault((one.set_id, found.question), _record(one, found, shown))
    return list(made.values())


def _record(one: DocumentSet, found: LookUp, shown: list[int]) -> dict:
    record = {"set_id": one.set_id, "task": found.task.value, "question": found.question, "gold": found.parsed.gold}
    if found.options is not None:
        record["options"] = dict(zip(LETTERS, found.options, strict=True))
    return record | {"documents": shown}


if __name__ == "__main__":
    main()
