"""SPELL in one file: a model that learns to read long documents by questioning, answering and judging itself.

The algorithm of megatron_spell without the system (SPELL, arXiv 2509.23863). Nothing of the package is imported: this
file is what the package's rewards, advantages and loss are tested against (tests/golden/test_one_file_agrees.py).
`python examples/spell_in_one_file.py` plays it with a policy of three small tables in the place of a language model.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field

import numpy as np
import torch

ROLES = ("questioner", "responder", "verifier")
TASKS = ("general_qa", "math_qa", "multiple_choice")
FAILED = ("unsolved", "trivial", "ungrounded", "bad_format", "unfinished", "unusable_answer")


@dataclass(frozen=True)
class Settings:
    questions_per_step: int = 128
    max_draws_per_step: int = 4800
    documents_shown: int = 5  # m
    new_documents: int = 5
    answers: int = 8  # G
    votes: int = 8
    blind_answers: int = 4
    ground_margin: float = 0.25
    ground_margin_of_choice: float = 0.5
    memory: int = 3  # L
    sigma: float = 0.5 / 3
    failed_ratio: float = 1.0
    vote_groups: int = 16
    epsilon: float = 1e-6
    clip_low: float = 0.2
    clip_high: float = 0.2
    importance_cap: float = 2.0


@dataclass
class Output:
    """What a role wrote: what was read out of it (None: unreadable), and the log-probs of its tokens [A] then."""

    read: object
    log_probs: np.ndarray
    source: object = None  # whatever the model needs to find the log-probs again, with gradient


@dataclass
class Answer:
    output: Output
    rule: float  # 0 or 1, the scorer's verdict
    votes: list[Output] = field(default_factory=list)  # the same list for answers that say the same
    reward: float = 0.0


@dataclass
class Round:
    task: str
    outcome: str = ""
    ask: Output | None = None
    answers: list[Answer] = field(default_factory=list)
    question_reward: float = 0.0

    @property
    def solve_rate(self) -> float:
        return float(np.mean([answer.reward for answer in self.answers]))


@dataclass
class Group:
    """Outputs of one role that share a baseline."""

    role: str
    outputs: list[Output]
    rewards: list[float]


# ---- One round: ask, check, answer, judge, score ---------------------------------------------------------------------


def play_round(model, documents, task, history, answer_from, rng, s: Settings) -> tuple[Round, list[int]]:
    """`history`: remembered (question, shown documents) of this set and task. Also returns what was shown."""
    seen = {index for _, shown in history for index in shown}
    unseen = [index for index in range(len(documents)) if index not in seen]
    wanted = s.new_documents if history else s.documents_shown
    shown = sorted(seen | set(rng.choice(unseen, size=min(wanted, len(unseen)), replace=False).tolist()))

    ask = model.ask([documents[index] for index in shown], [question for question, _ in history], task)
    if ask.read is None:
        return Round(task, "bad_format", ask, question_reward=-1.0), shown
    question = ask.read

    blind = [model.score(question, model.answer(question, None).read) for _ in range(s.blind_answers)]
    too_much = 0.25 + s.ground_margin_of_choice if task == "multiple_choice" else s.ground_margin
    if blind and np.mean(blind) >= too_much:
        return Round(task, "ungrounded", ask, question_reward=-0.5), shown

    given = [documents[index] for index in sorted(set(shown) | set(answer_from))]
    outputs = [model.answer(question, given) for _ in range(s.answers)]
    answers = [Answer(output, model.score(question, output.read)) for output in outputs]
    if task != "multiple_choice":  # a letter is right or wrong, there is nothing to judge
        said = dict.fromkeys(output.read for output in outputs if output.read is not None)
        votes = {text: [model.judge(question, text) for _ in range(s.votes)] for text in said}
        for answer in answers:
            answer.votes = votes.get(answer.output.read, [])
    return score_round(Round(task, "", ask, answers), s), shown


def score_round(played: Round, s: Settings) -> Round:
    """Rewards of an answered round: r_res = max(rule, majority), and the questioner's from the mean of them."""
    for answer in played.answers:
        answer.reward = max(answer.rule, float(majority(answer.votes) or 0.0))
    played.question_reward = frontier(played.solve_rate, s.sigma)
    played.outcome = {0.0: "unsolved", 1.0: "trivial"}.get(played.solve_rate, "usable")
    return played


def majority(votes: list[Output]) -> bool | None:
    """Yes only with more than half of the votes that can be read; None when none can."""
    valid = [vote.read for vote in votes if vote.read is not None]
    return sum(valid) > len(valid) / 2 if valid else None


def frontier(solve_rate: float, sigma: float) -> float:
    """r_que: 1 for a question that is solved half of the time, 0 for one that is always or never solved."""
    return float(np.exp(-((solve_rate - 0.5) ** 2) / (2 * sigma**2))) if 0 < solve_rate < 1 else 0.0


def vote_rewards(votes: list[Output]) -> list[float]:
    """r_ver: 1 for a vote with the majority."""
    return [float(vote.read is not None and vote.read == majority(votes)) for vote in votes]


def votes_can_teach(votes: list[Output], rule: float) -> bool:
    """Some but not all agree with the majority, and the majority is what the rule says."""
    valid = [vote.read for vote in votes if vote.read is not None]
    agreement = max(valid.count(True), valid.count(False)) / len(valid) if valid else 0.0
    return 0.5 < agreement < 1 and majority(votes) == bool(rule)


# ---- One step: groups, advantages, objective -------------------------------------------------------------------------


def groups_of(rounds: list[Round], rng, s: Settings) -> list[Group]:
    """What a step trains on. A group whose rewards are all equal has no signal and is left out."""
    usable = [played for played in rounds if played.outcome == "usable"]
    groups = [Group("responder", [a.output for a in p.answers], [a.reward for a in p.answers]) for p in usable]

    short = 0.0  # failed questions that a task lacks are taken from the next
    for task in TASKS:
        good = [played for played in usable if played.task == task]
        failed = [played for played in rounds if played.task == task and played.outcome in FAILED]
        wanted = len(good) * s.failed_ratio + short
        num_failed = min(int(wanted), len(failed))
        short = wanted - num_failed
        chosen = good + [failed[index] for index in rng.permutation(len(failed))[:num_failed]]
        groups.append(Group("questioner", [p.ask for p in chosen], [p.question_reward for p in chosen]))

    can_teach = {id(a.votes): a.votes for p in rounds for a in p.answers if votes_can_teach(a.votes, a.rule)}
    vote_groups = list(can_teach.values())
    for index in rng.permutation(len(vote_groups))[: s.vote_groups]:
        groups.append(Group("verifier", vote_groups[index], vote_rewards(vote_groups[index])))
    return [group for group in groups if np.any(advantages(group.rewards, s.epsilon))]


def advantages(rewards: list[float], epsilon: float) -> np.ndarray:
    r = np.array(rewards, dtype=np.float64)
    if len(r) < 2 or np.all(r == r[0]):
        return np.zeros(len(r))
    return (r - r.mean()) / (r.std(ddof=1) + epsilon)


def objective(groups: list[Group], log_probs_of, s: Settings, *, on_policy=True, token_mean=False) -> torch.Tensor:
    """J = sum over roles, mean over the role's groups, of [sum over the group's tokens of A * ratio / its tokens].

    `log_probs_of(output)` gives the present policy's log-probs [A] with gradient. `token_mean` is the mean over all
    tokens of all groups instead. To be maximised.
    """
    terms = []
    all_tokens = sum(len(output.log_probs) for group in groups for output in group.outputs)
    for role in ROLES:
        of_role = [group for group in groups if group.role == role]
        for group in of_role:
            tokens = sum(len(output.log_probs) for output in group.outputs)
            weight = 1 / all_tokens if token_mean else 1 / (len(of_role) * tokens)
            for output, advantage in zip(group.outputs, advantages(group.rewards, s.epsilon), strict=True):
                now = log_probs_of(output)
                then = now.detach() if on_policy else torch.as_tensor(output.log_probs, dtype=now.dtype)
                terms.append(weight * surrogate(now, then, float(advantage), s).sum())
    return torch.stack(terms).sum()


def surrogate(now: torch.Tensor, then: torch.Tensor, advantage: float, s: Settings) -> torch.Tensor:
    """min(ratio * A, clip(ratio) * A) with the ratio's size, not its gradient, cut at `importance_cap`."""
    size = torch.exp(now - then).detach().clamp(max=s.importance_cap)
    ratio = size * torch.exp(now - now.detach())  # ratio 1 and gradient A where now == then: strictly on-policy
    return torch.minimum(ratio * advantage, ratio.clamp(1 - s.clip_low, 1 + s.clip_high) * advantage)


# ---- Training --------------------------------------------------------------------------------------------------------


def train(model, optimizer, sets: list[list], steps: int, rng, s: Settings):
    """Yields the rounds and the loss of every step."""
    memory = defaultdict(lambda: deque(maxlen=s.memory))  # (set, task) -> solved questions and what they were asked on
    num_answer_documents, solve_rates = s.documents_shown, deque(maxlen=s.questions_per_step)
    for _ in range(steps):
        rounds, remembered = [], []
        for _ in range(s.max_draws_per_step):
            number, task = int(rng.integers(len(sets))), str(rng.choice(TASKS))
            answer_from = rng.permutation(len(sets[number]))[:num_answer_documents].tolist()
            played, shown = play_round(model, sets[number], task, memory[number, task], answer_from, rng, s)
            rounds.append(played)
            remembered += [(number, task, played.ask.read, shown)] if played.outcome == "usable" else []
            solve_rates.extend([played.solve_rate] if played.answers else [])
            if len(remembered) == s.questions_per_step:
                break
        groups = groups_of(rounds, rng, s)
        if groups:
            loss = -objective(groups, model.log_probs, s)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield rounds, loss.item()
        for number, task, question, shown in remembered:
            if question not in [known for known, _ in memory[number, task]]:
                memory[number, task].append((question, shown))
        if (
            len(solve_rates) == solve_rates.maxlen and np.mean(solve_rates) > 0.6
        ):  # longer, once this length is read well
            num_answer_documents *= 2
            solve_rates.clear()


class TablePolicy(torch.nn.Module):
    """Documents are numbers. A question asks for the sum of the first d documents shown, and is the harder the larger d
    is; answers are off by 0 to 7, votes are yes, no or unreadable. What each role writes in each situation is one token
    out of a table of logits."""

    def __init__(self, rng):
        super().__init__()
        self.rng = rng
        self.ask_table = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 1.0, 0.0, -1.0, -2.0]], dtype=torch.float64))
        off_by = torch.zeros(6, 8, dtype=torch.float64)
        off_by[:, 0] = torch.tensor([0.0, 3.0, 2.0, 1.0, 0.0, -1.0])
        self.answer_table = torch.nn.Parameter(off_by)  # [d, error]; row 0: answering without documents
        votes = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
        self.vote_table = torch.nn.Parameter(votes)  # [the answer is right, (yes, no, unreadable)]

    def write(self, table: torch.nn.Parameter, row: int) -> tuple[int, Output]:
        log_probs = torch.log_softmax(table[row], -1).detach().numpy()
        token = int(self.rng.choice(len(log_probs), p=np.exp(log_probs) / np.exp(log_probs).sum()))
        return token, Output(None, log_probs[token : token + 1], (table, row, token))

    def log_probs(self, output: Output) -> torch.Tensor:
        table, row, token = output.source
        return torch.log_softmax(table[row], -1)[token : token + 1]

    def ask(self, documents, examples, task) -> Output:
        difficulty, output = self.write(self.ask_table, 0)
        output.read = (difficulty, sum(documents[:difficulty])) if difficulty else None
        return output

    def answer(self, question, documents) -> Output:
        difficulty, gold = question
        error, output = self.write(self.answer_table, difficulty if documents else 0)
        output.read = gold + error
        return output

    def score(self, question, answer) -> float:
        return float(answer == question[1])

    def judge(self, question, answer) -> Output:
        token, output = self.write(self.vote_table, int(answer == question[1]))
        output.read = {0: True, 1: False}.get(token)
        return output


def main(steps: int = 60) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    sets = [rng.integers(1, 100, size=20).tolist() for _ in range(30)]
    model = TablePolicy(rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    settings = Settings(questions_per_step=32, max_draws_per_step=400)
    figures = []
    for rounds, loss in train(model, optimizer, sets, steps, rng, settings):
        asked = [played.ask.read[0] for played in rounds if played.ask.read]
        right = [answer.rule for played in rounds for answer in played.answers]
        votes = torch.softmax(model.vote_table.detach(), -1)
        figures.append({"rounds": len(rounds), "difficulty": np.mean(asked), "right": np.mean(right), "loss": loss})
        figures[-1] |= {"bad_format": 1 - len(asked) / len(rounds), "verifier": float(votes[1, 0] + votes[0, 1]) / 2}
        if len(figures) % 10 == 1:
            print(f"step {len(figures):3d}  " + "  ".join(f"{name} {value:.3f}" for name, value in figures[-1].items()))
    return figures


if __name__ == "__main__":
    main()
