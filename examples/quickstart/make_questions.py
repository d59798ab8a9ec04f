"""Write questions with known answers on the held-out sets of a token store, for measuring before and after training.

    python examples/quickstart/make_questions.py runs/quickstart/store.h5 --out runs/quickstart/questions.jsonl

One JSON object a line: set_id, task, question, gold, documents (the indices shown), options for multiple choice.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from lookup import LookUp, Spans, look_up

from megatron_spell.data.errors import StoreError
from megatron_spell.data.store import TokenStore
from megatron_spell.text.tokenizer import Tokenizer, TokenizerError
from megatron_spell.types.documents import Document, DocumentSet
from megatron_spell.types.play import LETTERS, TaskName

HERE = Path(__file__).parent
NUM_QUESTIONS = {TaskName.GENERAL_QA: 174, TaskName.MATH_QA: 18, TaskName.MULTIPLE_CHOICE: 18}
LENGTHS = (256, 512, 1024)  # document tokens shown, in turn
MAX_TRIES = 200


def main() -> None:
    options = options_parser(__doc__).parse_args()
    tokenizer, sets = read_sets(options, "heldout")
    if not sets:
        sys.exit(f"{options.store} holds no held-out set")
    lines = [json.dumps(question, ensure_ascii=False) for question in questions(sets, tokenizer, options.seed)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{options.out}: {len(lines)} questions on {len(sets)} held-out sets")


def options_parser(doc: str) -> argparse.ArgumentParser:
    """What every script that writes questions is told; `doc` is its own."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=HERE / "base_model")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def read_sets(options: argparse.Namespace, split: str) -> tuple[Tokenizer, list[DocumentSet]]:
    """The tokenizer and the sets of one split of the store; exits in one line where they do not belong together."""
    try:
        tokenizer = Tokenizer.load(options.tokenizer)
        with TokenStore.open(options.store) as store:
            if store.tokenizer_fingerprint != tokenizer.fingerprint:
                sys.exit(f"{options.store} was built with another tokenizer than {options.tokenizer}; build it again")
            return tokenizer, [store.document_set(set_id) for set_id in store.set_ids(split)]
    except (StoreError, TokenizerError) as error:
        sys.exit(str(error))


def questions(sets: list[DocumentSet], tokenizer: Tokenizer, seed: int) -> Iterator[dict]:
    """Different questions, spread over sets and lengths; fewer of a task than wanted when the texts hold no more.

    No two numbers asked for are of one document: the reference has few.
    """
    spans, asked = Spans(tokenizer), set()
    for task, number in NUM_QUESTIONS.items():
        rng = random.Random(f"{seed} {task}")
        made = 0
        for attempt in range(MAX_TRIES * number):
            if made == number:
                break
            one = sets[attempt % len(sets)]
            found = _one(one, task, LENGTHS[made % len(LENGTHS)], spans, rng)
            if found is None:
                continue
            question, holder = found
            what = holder if task is TaskName.MATH_QA else question["question"]
            if (one.set_id, what) not in asked:
                asked.add((one.set_id, what))
                made += 1
                yield question


def _one(
    one: DocumentSet, task: TaskName, num_tokens: int, spans: Spans, rng: random.Random
) -> tuple[dict, int] | None:
    """A question and the index of the document that holds its answer."""
    shown = some_documents(one, num_tokens, rng)
    documents = [one.documents[i] for i in shown]
    found = look_up(task, documents, spans, rng)
    if found is None or not _unambiguous(found, documents, spans):
        return None
    question = {"set_id": one.set_id, "task": task.value, "question": found.question, "gold": found.parsed.gold}
    if found.options is not None:
        question["options"] = dict(zip(LETTERS, found.options, strict=True))
    return question | {"documents": shown}, shown[found.document]


def some_documents(one: DocumentSet, num_tokens: int, rng: random.Random) -> list[int]:
    """Indices, in the set's order, of documents that together come close to `num_tokens` from below; at least one."""
    order = rng.sample(range(len(one.documents)), len(one.documents))
    shown, left = [], num_tokens
    for index in order:
        if one.documents[index].num_tokens <= left or not shown:
            shown.append(index)
            left -= one.documents[index].num_tokens
    return sorted(shown)


def _unambiguous(found: LookUp, documents: list[Document], spans: Spans) -> bool:
    """Whether the fragment stands in the documents only once."""
    texts = [spans.text(document, 0, document.num_tokens) for document in documents]
    return sum(text.count(found.question) for text in texts) == 1


if __name__ == "__main__":
    main()
