import asyncio
from dataclasses import replace

from megatron_spell.data.questions import KnownQuestion
from megatron_spell.selfplay.given import GivenQuestions
from megatron_spell.selfplay.round import play_round
from megatron_spell.types.play import Outcome, ParsedQuestion, Role, TaskName
from tests.unit.selfplay.playing import Script, make_table

QUESTIONS = [
    KnownQuestion(f"set-{i % 3}", TaskName.GENERAL_QA, ParsedQuestion(f"Which bird {i}?", "red kite"), documents)
    for i, documents in enumerate([None, (1, 2), None, (0,), (3,)])
]
SIZES = {"set-0": 4, "set-1": 4, "set-2": 4}


def test_every_question_comes_once_before_any_comes_again():
    given = GivenQuestions(QUESTIONS, SIZES, seed=1)
    epochs = [[given.draw(epoch * 5 + place).given for place in range(5)] for epoch in range(3)]
    assert all({q.question for q in one} == {q.question.question for q in QUESTIONS} for one in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] == [GivenQuestions(QUESTIONS, SIZES, seed=1).draw(place).given for place in range(5)]
    assert epochs[0] != [GivenQuestions(QUESTIONS, SIZES, seed=2).draw(place).given for place in range(5)]


def test_a_draw_has_the_questions_own_documents_or_the_whole_set():
    given = GivenQuestions(QUESTIONS, SIZES, seed=1)
    by_question = {draw.given.question: draw for draw in map(given.draw, range(5))}
    assert by_question["Which bird 1?"].answer_from == (1, 2)
    assert by_question["Which bird 0?"].answer_from == (0, 1, 2, 3)
    assert by_question["Which bird 1?"].set_id == "set-1"


def test_nothing_is_asked_nor_checked_for_ground(folder):
    script = Script()
    draw = replace(GivenQuestions(QUESTIONS, SIZES, seed=1).draw(0), index=4)
    played = asyncio.run(play_round(draw, make_table(folder, script)))
    assert script.num_requests(Role.QUESTIONER) == 0
    assert played.ask is None
    assert played.blind_solve_rate is None
    assert played.outcome is Outcome.USABLE
    assert [answer.rule for answer in played.answers_G] == [1.0, 0.0] * 4
