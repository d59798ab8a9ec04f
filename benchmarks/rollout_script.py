"""What is said in the rounds of rollout.py: drawn and not the model's, so that every schedule plays the same rounds.

Everything is a function of (seed, round, role, text that is judged, sample number). Which of them a request is about is
read from its prompt: every document and question names its round.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.documents import Document, DocumentSet
from megatron_spell.types.play import LETTERS, Draw, Role, TaskName
from megatron_spell.types.seeds import stream_seed

Kind = Literal["ask", "blind", "answer", "vote"]

ROUND = re.compile(r"\bround ([0-9]+)\b")
JUDGED = re.compile(r"<answer>\n(.*?)\n</answer>")
GOLD = {TaskName.GENERAL_QA: "red kite", TaskName.MATH_QA: "12.5"}
# Right, but not by the rule: another name, a number rounded elsewhere.
REPHRASED = {TaskName.GENERAL_QA: "Milvus milvus", TaskName.MATH_QA: "12.52"}
WRONG = {
    TaskName.GENERAL_QA: ("blue tit", "grey heron", "tawny owl", "marsh harrier"),
    TaskName.MATH_QA: ("13.5", "7", "86.2", "2019"),
}
WORDS = ("river", "stone", "gate", "field", "tower", "winter", "harbour", "council", "letter", "bridge", "market")


@dataclass(frozen=True, slots=True)
class Assumed:
    """Sizes and chances of the rounds. Lengths are an eighth of those in practice, documents a twentieth."""

    questioner_tokens: int = 60  # median; it derives its answer first
    responder_tokens: int = 40  # median; practice: means of 200 to 600 (paper, figure 5)
    verifier_tokens: int = 16  # median; it explains what it compared
    length_sigma: float = 0.8  # of the log-normal lengths: the longest of 100 is 6 times the median
    longest: float = 8.0  # medians at which an output is cut (practice: 4096 tokens)
    num_documents: int = 8
    document_tokens: int = 96
    bad_format: float = 0.1  # questions that cannot be read
    known: float = 0.08  # questions that can be answered without the documents
    solved_if_known: float = 0.9  # blind samples of such a question that are right
    solve_shape: float = 0.3  # a question's chance of a right answer is Beta(s, s): most are easy or hopeless
    no_answer: float = 0.03  # answers that state none
    rephrased: float = 0.1  # right answers that the rule refuses (general_qa, math_qa)
    wrong_weights: tuple[float, ...] = (0.5, 0.25, 0.15, 0.1)  # of the wrong answers to a question
    vote_right: float = 0.88  # votes that see what is right
    vote_unreadable: float = 0.02

    def median_tokens(self, kind: Kind) -> int:
        if kind == "ask":
            return self.questioner_tokens
        return self.verifier_tokens if kind == "vote" else self.responder_tokens

    def max_tokens(self) -> dict[Role, int]:
        """By role, where outputs are cut."""
        medians = (self.questioner_tokens, self.responder_tokens, self.verifier_tokens)
        return {role: int(self.longest * median) for role, median in zip(Role, medians)}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt asks for: `text` is the answer that is judged."""

    index: int
    kind: Kind
    text: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """How a round goes."""

    task: TaskName
    letter: str
    is_bad: bool
    is_known: bool
    solve_chance: float

    @property
    def gold(self) -> str:
        return GOLD.get(self.task, self.letter)

    @property
    def wrong(self) -> tuple[str, ...]:
        return WRONG.get(self.task) or tuple(letter for letter in LETTERS if letter != self.letter)


class Script:
    def __init__(self, assumed: Assumed, tokenizer: Tokenizer, seed: int = 0) -> None:
        self.assumed, self.seed = assumed, seed
        self._tokenizer = tokenizer
        self._filler = int(tokenizer.encode_quoted(" so")[0])
        self._scenes: dict[bytes, Scene] = {}
        self.plot = lru_cache(maxsize=None)(self._plot)

    def draw(self, index: int) -> Draw:
        plot, rng = self.plot(index), self._rng(index, "draw")
        documents = range(self.assumed.num_documents)
        shown = tuple(sorted(rng.choice(documents, size=min(3, len(documents)), replace=False).tolist()))
        letter = plot.letter if plot.task == TaskName.MULTIPLE_CHOICE else None
        return Draw(index, f"round {index}", plot.task, shown, tuple(documents), target_letter=letter)

    def document_set(self, set_id: str) -> DocumentSet:
        rng = self._rng(set_id, "documents")
        documents = (self._document(set_id, number, rng) for number in range(self.assumed.num_documents))
        return DocumentSet(set_id, "train", tuple(documents))

    def reply(self, prompt_ids_T: np.ndarray, spec: SamplingSpec, sample: int) -> np.ndarray:
        """The token ids of one sample, int32; they end with a stop token unless the output is cut."""
        assumed, scene = self.assumed, self._scene(prompt_ids_T)
        rng = self._rng(scene.index, scene.kind, scene.text, sample)
        median = assumed.median_tokens(scene.kind)
        length, longest = int(median * rng.lognormal(0.0, assumed.length_sigma)), int(median * assumed.longest)
        if length > longest:
            return np.full(longest, self._filler, np.int32)
        said_T = self._tokenizer.encode_quoted(self._words(scene, rng))
        thinking_T = np.full(max(0, length - 1 - len(said_T)), self._filler)
        return np.concatenate([thinking_T, said_T, self._tokenizer.stop_ids[:1]]).astype(np.int32)

    def _document(self, set_id: str, number: int, rng: np.random.Generator) -> Document:
        text = f"Document {number} of {set_id}. " + " ".join(rng.choice(WORDS, size=self.assumed.document_tokens))
        token_ids_T = self._tokenizer.encode_quoted(text)[: self.assumed.document_tokens]
        return Document(f"{set_id}, {number}", f"document {number}", token_ids_T)

    def _plot(self, index: int) -> Plot:
        rng, assumed = self._rng(index, "plot"), self.assumed
        return Plot(
            task=list(TaskName)[int(rng.integers(len(TaskName)))],
            letter=LETTERS[int(rng.integers(len(LETTERS)))],
            is_bad=bool(rng.random() < assumed.bad_format),
            is_known=bool(rng.random() < assumed.known),
            solve_chance=float(rng.beta(assumed.solve_shape, assumed.solve_shape)),
        )

    def _scene(self, prompt_ids_T: np.ndarray) -> Scene:
        key = np.asarray(prompt_ids_T, np.int32).tobytes()
        if key not in self._scenes:
            self._scenes[key] = scene_of(self._tokenizer.decode(prompt_ids_T))
        return self._scenes[key]

    def _words(self, scene: Scene, rng: np.random.Generator) -> str:
        plot = self.plot(scene.index)
        if scene.kind == "ask":
            return "Nothing comes to mind." if plot.is_bad else question(scene.index, plot)
        if scene.kind == "vote":
            return self._vote(plot, scene.text, rng)
        return self._answer(plot, scene.kind == "blind", rng)

    def _answer(self, plot: Plot, is_blind: bool, rng: np.random.Generator) -> str:
        chance = plot.solve_chance
        if is_blind:
            guess = 1 / len(LETTERS) if plot.task == TaskName.MULTIPLE_CHOICE else 0.0
            chance = self.assumed.solved_if_known if plot.is_known else guess
        if rng.random() < self.assumed.no_answer:
            return "I cannot tell."
        if rng.random() < chance:
            rephrased = not is_blind and rng.random() < self.assumed.rephrased
            return f"The correct answer is {REPHRASED.get(plot.task, plot.gold) if rephrased else plot.gold}"
        weights = np.array(self.assumed.wrong_weights[: len(plot.wrong)])
        return f"The correct answer is {rng.choice(plot.wrong, p=weights / weights.sum())}"

    def _vote(self, plot: Plot, text: str, rng: np.random.Generator) -> str:
        is_right = text in (plot.gold, REPHRASED.get(plot.task))
        if rng.random() < self.assumed.vote_unreadable:
            return "Hard to say."
        sees_it = rng.random() < self.assumed.vote_right
        return "[[YES]]" if is_right == sees_it else "[[NO]]"

    def _rng(self, *key: int | str) -> np.random.Generator:
        return np.random.default_rng(stream_seed(self.seed, *key))


def scene_of(prompt: str) -> Scene:
    """Told by the package's own templates. Raises ValueError for a prompt that is of no round."""
    found = ROUND.search(prompt)
    if found is None:
        raise ValueError(f"a prompt names no round: {prompt[:80]!r}")
    index, judged = int(found[1]), JUDGED.search(prompt)
    if judged is not None:
        return Scene(index, "vote", judged[1])
    if "```json" in prompt:
        return Scene(index, "ask")
    return Scene(index, "blind" if "(no text is given)" in prompt else "answer")


def question(index: int, plot: Plot) -> str:
    """A well-formed question as a questioner writes it."""
    found: dict[str, object] = {"question": f"What of round {index}?"}
    if plot.task == TaskName.MULTIPLE_CHOICE:
        found["options"] = dict(zip(LETTERS, ("red", "blue", "grey", "brown")))
    return f"```json\n{json.dumps(found | {'answer': plot.gold})}\n```"
