"""The system's rewards, advantages, loss and gradients are those of examples/spell_in_one_file.py.

The one file writes the formulas down as loops over groups and tokens; the system settles weights per row, shares
prompts and adds up bins and ranks. Random rounds go through both.
"""

import ast
import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_spell.algo.importance import RowSums, importance_of
from megatron_spell.algo.losses import row_weights, token_losses
from megatron_spell.algo.packing import NO_ROW, pack
from megatron_spell.config.schema import AlgoSection, RewardSection
from megatron_spell.rewards.assign import assign_rewards
from megatron_spell.selfplay.assemble import FAILED, assemble
from megatron_spell.types.batches import TrainRow
from megatron_spell.types.play import (
    LETTERS,
    Answer,
    Completion,
    Draw,
    Judgment,
    Outcome,
    ParsedQuestion,
    Role,
    Round,
    TaskName,
    Turn,
)

FILE = Path(__file__).parents[2] / "examples" / "spell_in_one_file.py"
NO_CHOICE = AlgoSection(failed_question_ratio=1e6, verifier_groups_per_step=10**6)  # everything there is, is taken
EARLY = {
    Outcome.BAD_FORMAT: -1.0,
    Outcome.UNFINISHED: -1.0,
    Outcome.UNUSABLE_ANSWER: -1.0,
    Outcome.UNGROUNDED: -0.5,
}


def load_one_file():
    spec = importlib.util.spec_from_file_location("spell_in_one_file", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


one = load_one_file()


# ---- Random rounds, as the system plays them and as the one file does ------------------------------------------------


class Player:
    """Makes rounds whose turns differ in length, votes and rewards."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def turn(self, role: Role, prompt_ids_T: np.ndarray) -> Turn:
        length = int(self.rng.integers(1, 12))
        log_probs = -self.rng.exponential(1.0, size=length).astype(np.float32)
        completion = Completion(self.rng.integers(1, 99, size=length), log_probs, "stop", 0)
        return Turn(role, prompt_ids_T, completion, "")

    def prompt(self) -> np.ndarray:
        return self.rng.integers(1, 99, size=self.rng.integers(3, 30))

    def play(self, index: int) -> Round:
        task = TaskName(self.rng.choice(list(TaskName)))
        letter = str(self.rng.choice(LETTERS)) if task is TaskName.MULTIPLE_CHOICE else None
        ask = self.turn(Role.QUESTIONER, self.prompt())
        started = Round(Draw(index, "s", task, (0,), (0, 1), (), letter), Outcome.UNSOLVED, ask=ask)
        if self.rng.random() < 0.3:
            outcome = self.rng.choice(list(EARLY))
            return replace(started, outcome=Outcome(outcome), question_reward=EARLY[outcome])
        return replace(started, question=ParsedQuestion("q", letter or "4"), answers_G=self.answers(task))

    def answers(self, task: TaskName) -> tuple[Answer, ...]:
        prompt, share = self.prompt(), self.rng.random()
        texts = self.rng.choice([None, "4", "5", "6"], p=[0.1, 0.8 * share, 0.8 * (1 - share), 0.1], size=8)
        judged = {t: self.votes() for t in ("4", "5", "6") if task is not TaskName.MULTIPLE_CHOICE}
        return tuple(
            Answer(self.turn(Role.RESPONDER, prompt), text, float(text == "4"), judgments_V=judged.get(text, ()))
            for text in texts
        )

    def votes(self) -> tuple[Judgment, ...]:
        prompt, yes = self.prompt(), 0.9 * self.rng.random()
        votes = self.rng.choice([True, False, None], p=[yes, 0.9 - yes, 0.1], size=8)
        return tuple(Judgment(self.turn(Role.VERIFIER, prompt), vote) for vote in votes)


def as_one(played: Round):
    """The same round for the one file; an output's source is the turn's token array, by identity."""

    def output(turn: Turn, read: object):
        return one.Output(read, turn.completion.log_probs_T.astype(np.float64), turn.completion.token_ids_T)

    votes = {id(a.judgments_V): [output(j.turn, j.vote) for j in a.judgments_V] for a in played.answers_G}
    answers = [one.Answer(output(a.turn, a.parsed), a.rule, votes[id(a.judgments_V)]) for a in played.answers_G]
    return one.Round(
        str(played.draw.task), str(played.outcome), output(played.ask, None), answers, played.question_reward
    )


@dataclass
class Both:
    """The same rounds, scored by the system and by the one file."""

    system: list[Round]
    single: list


def play_both(seed: int, num_rounds: int = 24) -> Both:
    player = Player(seed)
    raw = [player.play(index) for index in range(num_rounds)]
    system = [assign_rewards(played, RewardSection()) if played.answers_G else played for played in raw]
    single = [as_one(played) for played in raw]
    for played in single:
        if played.answers:
            one.score_round(played, one.Settings())
    return Both(system, single)


SEEDS = range(6)


# ---- Rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_rewards_and_outcomes_agree(seed):
    both = play_both(seed)
    for system, single in zip(both.system, both.single, strict=True):
        assert str(system.outcome) == single.outcome
        assert system.question_reward == pytest.approx(single.question_reward)
        for answer, expected in zip(system.answers_G, single.answers, strict=True):
            assert answer.reward == expected.reward
            if answer.judgments_V:
                voted = one.majority(expected.votes)
                assert answer.majority == (None if voted is None else float(voted))
                assert [j.reward for j in answer.judgments_V] == one.vote_rewards(expected.votes)


def test_the_random_rounds_meet_every_case():
    rounds = [played for seed in SEEDS for played in play_both(seed).system]
    assert {played.outcome for played in rounds} == {Outcome.USABLE, *FAILED}
    votes = [[j.vote for j in a.judgments_V] for played in rounds for a in played.answers_G if a.judgments_V]
    assert any(group.count(True) == group.count(False) for group in votes)
    assert any(a.majority == 1 and a.rule == 0 for played in rounds for a in played.answers_G)
    assert any(a.majority == 0 and a.rule == 1 for played in rounds for a in played.answers_G)


def test_the_frontier_reward_is_the_papers():
    rewards = [one.frontier(solved / 8, one.Settings().sigma) for solved in range(9)]
    expected = [0, 0.0796, 0.3247, 0.7548, 1.0, 0.7548, 0.3247, 0.0796, 0]
    np.testing.assert_allclose(rewards, expected, atol=5e-5)


# ---- Advantages ------------------------------------------------------------------------------------------------------


def settings_of(algo: AlgoSection):
    return one.Settings(failed_ratio=algo.failed_question_ratio, vote_groups=algo.verifier_groups_per_step)


def both_batches(both: Both, algo: AlgoSection = NO_CHOICE) -> tuple[list[TrainRow], list]:
    rows = assemble(both.system, algo, np.random.default_rng(0))
    return rows, one.groups_of(both.single, np.random.default_rng(0), settings_of(algo))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_outputs_are_trained_on_with_the_same_advantages(seed):
    rows, groups = both_batches(play_both(seed))
    system = {id(row.response_ids_A): (str(row.role), row.advantage) for row in rows}
    single = {
        id(output.source): (group.role, advantage)
        for group in groups
        for output, advantage in zip(group.outputs, one.advantages(group.rewards, 1e-6), strict=True)
    }
    assert len(system) == len(rows) > 50
    assert set(system) == set(single)
    for key, (role, advantage) in system.items():
        assert role == single[key][0]
        assert advantage == pytest.approx(single[key][1])


def test_groups_without_signal_are_left_out_by_both():
    """In steps of a few rounds a task often has a single question, or several that earned the same."""
    left_out = 0
    for seed in range(12):
        both = play_both(seed, num_rounds=4)
        rows, groups = both_batches(both)
        assert {id(row.response_ids_A) for row in rows} == {id(o.source) for group in groups for o in group.outputs}
        asked = {played.draw.task for played in both.system}
        left_out += len(asked) - len({row.task for row in rows if row.role is Role.QUESTIONER})
    assert left_out > 3


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_as_many_failed_questions_are_taken_of_every_task(ratio):
    algo = AlgoSection(failed_question_ratio=ratio, verifier_groups_per_step=3)
    rows, groups = both_batches(play_both(3, num_rounds=60), algo)
    for role in Role:
        system = sorted(sum(row.group == group for row in rows) for group in {r.group for r in rows if r.role is role})
        assert system == sorted(len(group.outputs) for group in groups if group.role == role)


# ---- Loss and gradient -----------------------------------------------------------------------------------------------


class Policy:
    """Present log-probs of every output, as one leaf tensor."""

    def __init__(self, rows: list[TrainRow], seed: int, drift: float) -> None:
        sizes = [row.response_ids_A.size for row in rows]
        starts = np.cumsum([0, *sizes[:-1]])
        self.spans = {id(row.response_ids_A): (s, s + n) for row, s, n in zip(rows, starts, sizes, strict=True)}
        engine = np.concatenate([row.engine_log_probs_A for row in rows]).astype(np.float64)
        noise = np.random.default_rng(seed).normal(scale=drift, size=engine.size)
        self.leaf = torch.tensor(engine + noise, requires_grad=True)

    def of(self, token_ids: np.ndarray) -> torch.Tensor:
        start, stop = self.spans[id(token_ids)]
        return self.leaf[start:stop]

    def gradient(self, loss: torch.Tensor) -> np.ndarray:
        return torch.autograd.grad(loss, self.leaf)[0].numpy()


def system_loss(rows: list[TrainRow], policy: Policy, mode: str, *, on_policy: bool, num_dp: int) -> torch.Tensor:
    algo = AlgoSection()
    batch = pack(rows, row_weights(rows, mode), num_dp=num_dp, max_bin_tokens=64, pad_multiple=4)
    total = torch.zeros((), dtype=torch.float64)
    for packed in (b for bins_B in batch.bins_D_B for b in bins_B):
        real = packed.row_A != NO_ROW
        order = np.unique(packed.row_A[real], return_index=True)
        by_row = [packed.row_A[i] for i in sorted(order[1])]
        log_probs_A = torch.cat([policy.of(rows[r].response_ids_A) for r in by_row] + [torch.zeros((~real).sum())])
        row_sums = RowSums(torch.from_numpy(packed.row_A), len(rows), lambda sums: sums)
        engine_A = torch.from_numpy(packed.engine_log_probs_A)
        importance = None if on_policy else importance_of(log_probs_A, engine_A, row_sums, algo.importance)
        advantages_A, weights_A = torch.from_numpy(packed.advantages_A), torch.from_numpy(packed.weights_A)
        losses_A = token_losses(log_probs_A, advantages_A, weights_A, importance, algo.clip_low, algo.clip_high)
        total = total + losses_A.sum()
    return total


@pytest.mark.parametrize("seed", SEEDS[:3])
@pytest.mark.parametrize("mode", ["per_role", "token_mean"])
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("num_dp", [1, 3])
def test_loss_and_gradient_agree(seed, mode, on_policy, num_dp):
    rows, groups = both_batches(play_both(seed))
    policy = Policy(rows, seed, drift=0.0 if on_policy else 0.6)
    system = system_loss(rows, policy, mode, on_policy=on_policy, num_dp=num_dp)
    single = -one.objective(
        groups,
        lambda output: policy.of(output.source),
        one.Settings(),
        on_policy=on_policy,
        token_mean=mode == "token_mean",
    )
    assert system.item() == pytest.approx(single.item(), abs=1e-9)
    gradient = policy.gradient(system)
    assert np.abs(gradient).max() > 1e-4
    np.testing.assert_allclose(gradient, policy.gradient(single), rtol=1e-6, atol=1e-12)


def test_the_settings_are_the_systems():
    settings, algo = one.Settings(), AlgoSection()
    for name in ("clip_low", "clip_high"):
        assert getattr(settings, name) == getattr(algo, name)
    assert settings.importance_cap == algo.importance.cap
    assert settings.epsilon == algo.advantage_epsilon
    assert settings.vote_groups == algo.verifier_groups_per_step
    assert settings.failed_ratio == algo.failed_question_ratio
    assert settings.sigma == RewardSection().frontier_sigma


# ---- The file itself -------------------------------------------------------------------------------------------------


def test_the_file_is_short_and_stands_alone():
    source = FILE.read_text()
    assert len(source.splitlines()) < 300
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported == {"collections", "dataclasses", "numpy", "torch"}


def test_the_file_learns_in_all_three_roles(capsys):
    figures = one.main(steps=15)
    first, last = figures[0], figures[-1]
    assert last["verifier"] > first["verifier"] + 0.1
    assert last["bad_format"] < first["bad_format"]
    assert last["right"] > first["right"]
    assert all(np.isfinite(list(figure.values())).all() for figure in figures)
    assert "step   1" in capsys.readouterr().out
