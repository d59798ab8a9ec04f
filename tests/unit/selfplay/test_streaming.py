"""A round has no barrier inside, asks for no more than it needs, and comes out the same however it went."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from megatron_spell.rollout.engine import EngineDied
from megatron_spell.rollout.scripted import Reply, ScriptedEngine
from megatron_spell.selfplay.jury import Jury
from megatron_spell.selfplay.round import play_round
from megatron_spell.selfplay.table import Table
from megatron_spell.types.play import Draw, Outcome, Role, TaskName
from tests.unit.selfplay.pacing import PacedEngine, Request, paced, plain
from tests.unit.selfplay.playing import Script, make_config, make_table

DRAW = Draw(index=5, set_id="set-1", task=TaskName.GENERAL_QA, shown=(1, 3), answer_from=(0, 1, 3))
CHOICE = '```json\n{"question": "Which?", "options": {"A": "w", "B": "x", "C": "y", "D": "z"}, "answer": "B"}\n```'
LETTERS = replace(DRAW, task=TaskName.MULTIPLE_CHOICE, target_letter="B")
RIGHT, WRONG, OTHER = (f"The correct answer is {bird}" for bird in ("red kite", "blue tit", "a goose"))
UNTRAINED = {"train_roles": ["responder", "questioner"]}
LIMIT_S = 10.0


async def until(done) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not done():
            await asyncio.sleep(0)


def stuck_table(folder, script: Script, is_stuck, config=None) -> tuple[Table, PacedEngine, asyncio.Event]:
    """Requests that `is_stuck` names end only when the event is set."""
    released = asyncio.Event()

    async def pace(request: Request) -> None:
        if is_stuck(request):
            await released.wait()

    table = make_table(folder, script, config)
    return table, paced(table, pace), released


def test_answers_are_judged_while_the_slowest_of_their_group_is_written(folder):
    async def scenario():
        def last(request):
            return request.role == Role.RESPONDER and not request.blind and request.spec.first == 7

        table, engine, released = stuck_table(folder, Script(answers=[*[RIGHT] * 3, *[WRONG] * 4, OTHER]), last)
        playing = asyncio.create_task(play_round(DRAW, table))
        await until(lambda: engine.votes and all(vote.ended for vote in engine.votes))
        judged_before = ["blue tit" in vote.prompt for vote in engine.votes]
        answered_before = sum(request.ended for request in engine.of(Role.RESPONDER))
        released.set()
        return judged_before, answered_before, await playing, engine

    judged_before, answered_before, played, engine = asyncio.run(scenario())
    assert judged_before and all(judged_before)
    assert answered_before == 7
    assert ["a goose" in vote.prompt for vote in engine.votes] == [False, True]
    assert [bool(a.judgments_V) for a in played.answers_G] == [False] * 3 + [True] * 5


def test_an_answer_that_parsed_to_the_text_of_an_earlier_one_asks_for_no_votes_of_its_own(folder):
    async def scenario():
        def first_and_votes(request):
            return request.role == Role.VERIFIER or (not request.blind and request.spec.first == 0)

        table, engine, released = stuck_table(
            folder,
            Script(answers=[WRONG, WRONG, WRONG, RIGHT]),
            lambda r: first_and_votes(r) and r.spec.seed != ask_seed,
        )
        ask_seed = table.speaker(Role.QUESTIONER, (), draw=DRAW, purpose="ask").spec.seed
        playing = asyncio.create_task(play_round(DRAW, table))
        await until(lambda: engine.votes)
        released.set()
        return await playing, engine

    played, engine = asyncio.run(scenario())
    assert len(engine.votes) == 1
    groups = [a.judgments_V for a in played.answers_G if not a.rule]
    assert len(groups) == 6 and all(votes is groups[0] for votes in groups)


@pytest.mark.parametrize(
    ("votes", "waves"),
    [
        (["no"] * 8, [4]),
        (["yes"] * 8, [4, 1]),
        (["yes", "no"] * 4, [4, 2, 1, 1]),
        (["no", "no", "yes", "no", "no"], [4, 1]),
        (["?"] * 8, [4, 2, 1, 1]),
        (["?", "no", "?", "no"], [4, 1, 1]),
        (["yes", "yes", "yes", "no", "yes", "no", "yes"], [4, 2, 1]),
    ],
)
def test_each_wave_of_votes_is_the_least_that_can_settle_the_majority(folder, votes, waves):
    said = {"no": "[[NO]]", "yes": "[[YES]]", "?": "who knows"}
    table = make_table(folder, Script(votes=[said[v] for v in votes]), make_config(folder, algo=UNTRAINED))
    engine = paced(table)
    played = asyncio.run(play_round(DRAW, table))
    assert [vote.spec.n for vote in engine.votes] == waves
    assert [vote.spec.first for vote in engine.votes] == np.cumsum([0, *waves[:-1]]).tolist()
    assert {len(a.judgments_V) for a in played.answers_G if not a.rule} == {sum(waves)}


@pytest.mark.parametrize(
    ("draw", "script", "num_heard"),
    [
        (DRAW, Script(blind=[RIGHT]), 1),
        (DRAW, Script(blind=[WRONG, WRONG, RIGHT, WRONG]), 3),
        (LETTERS, Script([CHOICE], blind=["answer is (B)", "answer is (B)", "answer is (B)", "answer is (A)"]), 3),
        (LETTERS, Script([CHOICE], ["answer is (A)"], blind=["answer is (A)"]), 2),
    ],
)
def test_blind_samples_are_aborted_when_they_can_change_nothing_more(folder, draw, script, num_heard):
    async def scenario():
        table, engine, _ = stuck_table(folder, script, lambda r: r.blind and r.spec.first >= num_heard)
        played = await asyncio.wait_for(play_round(draw, table), LIMIT_S)
        return played, engine

    played, engine = asyncio.run(scenario())
    blind = engine.of(Role.RESPONDER, blind=True)
    assert [request.cancelled for request in blind] == [False] * num_heard + [True] * (4 - num_heard)
    assert len(played.blind_turns) == num_heard
    ungrounded = script.blind[0] != "answer is (A)"
    assert (played.outcome is Outcome.UNGROUNDED) == ungrounded
    assert bool(engine.of(Role.RESPONDER)) != ungrounded


def test_a_round_that_is_cancelled_leaves_no_request_open(folder):
    async def scenario(stuck_role, num_open):
        def is_stuck(request):
            return request.role == stuck_role and not request.blind

        table, engine, _ = stuck_table(folder, Script(answers=[RIGHT, WRONG, OTHER]), is_stuck)
        playing = asyncio.create_task(play_round(DRAW, table))
        await until(lambda: engine.num_open == num_open and engine.requests[-1].role == stuck_role)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return engine.num_open, sum(r.cancelled for r in engine.requests), left

    for role, num_open in ((Role.QUESTIONER, 1), (Role.RESPONDER, 8), (Role.VERIFIER, 2)):
        assert asyncio.run(scenario(role, num_open)) == (0, num_open, [])


def test_an_engine_that_dies_under_one_answer_ends_the_round_and_its_other_requests(folder):
    async def scenario():
        table, engine, _ = stuck_table(folder, Script(), lambda r: r.role == Role.VERIFIER)
        engine.held.failures = {1 + 4 + 7: EngineDied("engine 0 died")}
        with pytest.raises(EngineDied, match="engine 0 died"):
            await asyncio.wait_for(play_round(DRAW, table), LIMIT_S)
        return engine.num_open, [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert asyncio.run(scenario()) == (0, [])


@pytest.mark.parametrize(("replay", "sizes"), [("never", [1] * 8), ("always", [8])])
def test_answers_are_asked_one_by_one_unless_expert_choices_are_replayed(folder, replay, sizes):
    table = make_table(folder, Script(), make_config(folder, policy={"moe": {"routing_replay": replay}}))
    engine = paced(table)
    played = asyncio.run(play_round(DRAW, table))
    assert [request.spec.n for request in engine.of(Role.RESPONDER)] == sizes
    whole = asyncio.run(play_round(DRAW, make_table(folder, Script())))
    assert plain(played) == plain(whole)
    assert all(a.turn.prompt_ids_T is played.answers_G[0].turn.prompt_ids_T for a in played.answers_G)


def test_requests_with_documents_go_to_the_home_of_their_set_and_the_others_anywhere(folder):
    table = make_table(folder, Script())
    engine = paced(table)
    asyncio.run(play_round(DRAW, table))
    assert {r.key for r in [*engine.of(Role.QUESTIONER), *engine.of(Role.RESPONDER)]} == {"set-1"}
    assert {r.key for r in [*engine.votes, *engine.of(Role.RESPONDER, blind=True)]} == {None}


# ---- Whatever comes first --------------------------------------------------------------------------------------------

DRAWS = (DRAW, replace(DRAW, index=6), replace(DRAW, index=7, set_id="set-2"), replace(DRAW, index=10), LETTERS)
SAID = {
    Role.RESPONDER: (RIGHT, WRONG, OTHER, "nothing at all"),
    Role.VERIFIER: ("[[YES]]", "[[NO]]", "[[NO]]", "who knows"),
}
CHOSEN = ("The correct answer is (B)", "The correct answer is (A)", "hm", "The correct answer is (C)")
HALF = {"full_votes_share": 0.5, "judge_right_share": 0.5}


def reply_of(table: Table, seed: int) -> Reply:
    """Says something by seed, request and sample, as an engine would that samples."""
    stop = table.tokenizer.stop_ids[0]

    def reply(prompt_ids_T, spec, sample):
        prompt = table.tokenizer.decode(prompt_ids_T)
        role = Role.VERIFIER if "[[YES]]" in prompt else Role.QUESTIONER if "```json" in prompt else Role.RESPONDER
        letters = "letter" in prompt
        said = Script().questions[0] if not letters else CHOICE
        if role != Role.QUESTIONER:
            # Blind answers are seldom right, or every round would end with them.
            draws = np.random.default_rng([seed, spec.seed % 2**32, sample]).integers(0, 4, 3)
            said = (CHOSEN if letters and role == Role.RESPONDER else SAID[role])[draws[0]]
            if "(no text is given)" in prompt and draws[1:].any():
                said = "nothing at all"
        return np.append(table.tokenizer.encode_quoted(said), stop)

    return reply


def random_pace(seed: int):
    rng = np.random.default_rng(seed)

    async def pace(request: Request) -> None:
        for _ in range(int(rng.integers(0, 40))):
            await asyncio.sleep(0)

    return pace


@pytest.fixture(scope="module")
def table(folder):
    return make_table(folder, Script())


def played_at(table: Table, draw: Draw, words: int, pace: int, **sections):
    config = make_config(table.config.model.path, **{"play": HALF, **sections})
    table = replace(table, engine=ScriptedEngine(reply_of(table, words)), config=config)
    engine = paced(table, random_pace(pace))
    found = []

    async def play() -> None:
        found.append(await play_round(draw, table))  # not returned: asyncio.run prints what its task returns

    asyncio.run(play())
    return found[0], engine


def test_a_round_is_the_same_whatever_comes_first(table):
    outcomes, full = set(), set()
    for draw in DRAWS:
        for words in range(4):
            rounds = [played_at(table, draw, words, pace)[0] for pace in range(4)]
            assert all(plain(played) == plain(rounds[0]) for played in rounds[1:]), (draw, words)
            outcomes.add(rounds[0].outcome)
            full |= {not a.stop_when_settled for a in rounds[0].answers_G if a.judgments_V}
    assert {Outcome.USABLE, Outcome.UNGROUNDED} <= outcomes
    assert full == {True, False}


def test_a_choice_by_arrival_would_be_noticed(table, monkeypatch):
    """The fault planted: the right answer that comes first is judged, and not the first of the group."""

    async def by_arrival(jury, answers_G):
        for coming in asyncio.as_completed(answers_G):
            answer = await coming
            if answer.rule:
                return await jury._ask(f"{answer.parsed} of {answer.turn.text}")
        return None

    def texts(pace):
        return [vote.prompt for vote in played_at(table, DRAW, 1, pace, **always)[1].votes]

    always = {"play": {"full_votes_share": 1.0, "judge_right_share": 1.0, "ground_samples": 0}}
    variants = [RIGHT + "." * i for i in range(4)]
    monkeypatch.setitem(SAID, Role.RESPONDER, (*variants[:3], WRONG))
    assert all(sorted(texts(pace)) == sorted(texts(0)) for pace in range(1, 6))
    monkeypatch.setattr(Jury, "_judge_first_right", by_arrival)
    assert any(sorted(texts(pace)) != sorted(texts(0)) for pace in range(1, 6))


def test_votes_that_stop_early_give_the_rewards_of_all_votes(table):
    num_groups = num_shorter = 0
    for index in range(40):
        draw = replace(DRAW, index=index)
        early, all_votes = (
            played_at(table, draw, index, 0, play={"ground_samples": 0, "full_votes_share": 1.0}, algo=algo)[0]
            for algo in (UNTRAINED, {})
        )
        assert early.outcome is all_votes.outcome and early.question_reward == all_votes.question_reward
        for some, whole in zip(early.answers_G, all_votes.answers_G, strict=True):
            if not some.judgments_V:
                continue
            assert (some.reward, some.majority) == (whole.reward, whole.majority)
            num = len(some.judgments_V)
            assert plain(some.judgments_V) == plain(whole.judgments_V[:num]) and len(whole.judgments_V) == 8
            assert some.stop_when_settled and not whole.stop_when_settled
            num_groups += 1
            num_shorter += num < 8
    assert num_groups > 100 and num_shorter > num_groups / 2
