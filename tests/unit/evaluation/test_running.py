"""A benchmark's samples got through a real server: what is asked, what is kept, what is never asked again."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from megatron_spell.config.benchmark_run import JudgeSection, ServerSection
from megatron_spell.evaluation.asking import Asking, Protocol
from megatron_spell.evaluation.benchmark_folder import BenchmarkFolder
from megatron_spell.evaluation.endpoint import Endpoint
from megatron_spell.evaluation.journal import Journal, JournalBusy
from megatron_spell.evaluation.judge import Judge, Judgments
from megatron_spell.evaluation.record import Record
from megatron_spell.evaluation.results import read_results
from megatron_spell.evaluation.running import BenchmarkRunner, TooManyFailures
from megatron_spell.evaluation.writers import EngineWriter, connect_writer, sample_seed, served_model
from megatron_spell.roles.templates import Templates
from megatron_spell.rollout.scripted import ScriptedEngine
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.play import TaskName
from megatron_spell.types.seeds import stream_seed
from tests.tiny_tokenizer import write_byte_tokenizer
from tests.unit.evaluation.openai_server import Fault, OpenAiServer

PROTOCOL = Protocol(samples=2, seed=0, max_input_tokens=20_000, max_tokens=64, temperature=0.7, top_p=0.95)
RIGHT, OTHER, WRONG = (f"The correct answer is {name}." for name in ("red kite", "Milvus milvus", "blue tit"))


def record(number: int, benchmark: str = "frames", **changes) -> Record:
    task = TaskName.MULTIPLE_CHOICE if benchmark == "longbench_v2" else TaskName.GENERAL_QA
    gold = "B" if benchmark == "longbench_v2" else "red kite"
    read = Record(benchmark, f"r{number}", task, f"Which bird? ({number})", f"Text {number}.", (gold,), "", "file:1")
    return replace(read, **changes)


RECORDS = [record(number) for number in range(3)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.load(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def asking_of(tokenizer: Tokenizer, **changes) -> Asking:
    return Asking(replace(PROTOCOL, **changes), Templates.load(None), ChatFormat(tokenizer), tokenizer)


def by_turns(*answers: str):
    """Answers in the order of samples, found from the seeds."""
    turn = {sample_seed(stream_seed(0, "evaluation", "frames", f"r{n}"), s): s for n in range(9) for s in range(9)}
    return lambda body: answers[turn.get(body.get("seed"), 0) % len(answers)]


def run(server: OpenAiServer, asking: Asking, folder, records=RECORDS, *, judge_server=None, prompts="auto", **limits):
    """The tally, and the judge's counts."""

    async def all_of():
        quick = {"first_wait_s": 0.01, "longest_wait_s": 0.1, "timeout_s": 5, "max_retries": 1}
        endpoint, judge = Endpoint(ServerSection(url=server.url, **quick)), None
        entry = await served_model(endpoint, None)
        writer = await connect_writer(endpoint, entry, prompts, asking.chat, asking.tokenizer.stop_ids)
        if judge_server is not None:
            settings = JudgeSection(url=judge_server.url, max_tokens=32, **quick)
            judge = Judge(Endpoint(settings), "judge", settings, Judgments(folder.parent / "judgments.sqlite"))
        limits_of = {"concurrency": 4, "max_failures": 0, **limits}
        tally = await BenchmarkRunner(asking, writer, judge, BenchmarkFolder(folder), **limits_of).run(records)
        if judge is not None:
            await judge.close()
        return SimpleNamespace(tally=tally, judge=judge and judge.judged, writer=writer)

    return asyncio.run(all_of())


def results(folder) -> dict:
    return {(r.benchmark, r.record_id, r.sample): r for r in read_results(folder / "results.jsonl")}


def test_samples_are_asked_as_token_ids_with_seeds_of_their_own(tokenizer, tmp_path):
    asking, answer = asking_of(tokenizer), by_turns(RIGHT, WRONG)
    with OpenAiServer(lambda path, body: answer(body)) as server:
        found = run(server, asking, tmp_path / "out")
    written = server.written()
    assert (found.tally.written, found.tally.scored, found.tally.num_left) == (6, 6, 0)
    assert {tuple(r["prompt"]) for r in written} == {tuple(asking.asked(r).prompt_ids_T.tolist()) for r in RECORDS}
    assert len({r["seed"] for r in written}) == 6
    assert {(r["temperature"], r["top_p"], r["max_tokens"]) for r in written} == {(0.7, 0.95, 64)}
    assert {(r["top_k"], r["repetition_penalty"], tuple(r["stop_token_ids"])) for r in written} == {
        (0, 1.0, tokenizer.stop_ids)
    }
    read = results(tmp_path / "out")
    assert [read["frames", "r0", s].score for s in (0, 1)] == [1.0, 0.0]
    assert {r.seed for r in read.values()} == {r["seed"] for r in written}
    assert {r.judge_score for r in read.values()} == {None}
    assert read["frames", "r1", 1].prediction == "blue tit"


def test_an_engine_writes_too(tokenizer, tmp_path):
    said = {0: RIGHT, 1: WRONG}
    engine = ScriptedEngine(lambda prompt, spec, sample: [*tokenizer.encode_literal(said[sample]), *spec.stop_ids[:1]])
    runner = BenchmarkRunner(
        asking_of(tokenizer), EngineWriter(engine, tokenizer), None, BenchmarkFolder(tmp_path), 4, 0
    )
    tally = asyncio.run(runner.run(RECORDS))
    assert (tally.scored, engine.counts.completions) == (6, 6)
    assert len(set(engine.keys)) == 3, "the samples of a record go to the engine that has its prompt"
    assert [results(tmp_path)["frames", "r2", s].score for s in (0, 1)] == [1.0, 0.0]


def test_a_server_without_token_ids_is_given_text_cut_alike(tokenizer, tmp_path):
    long = record(0, context="A" * 3000 + "B" * 3000)
    asking = asking_of(tokenizer, max_input_tokens=1000)
    with OpenAiServer(lambda path, body: RIGHT, takes_ids=False) as server:
        found = run(server, asking, tmp_path / "out", [long])
    assert found.writer.prompts == "chat"
    (text,) = {r["messages"][0]["content"] for r in server.judged()}
    whole = asking_of(tokenizer).asked(long)
    overhead = len(asking.chat.encode(()))
    assert len(text) == 1000 - overhead and text.endswith(whole.text[-300:]) and text.startswith(whole.text[:300])
    result = results(tmp_path / "out")["frames", "r0", 0]
    assert (result.prompt_tokens, result.truncated_tokens) == (whole.prompt_tokens, whole.prompt_tokens - 1000)


def test_the_judge_is_asked_about_refused_answers_alone_and_once(tokenizer, tmp_path):
    letters = record(7, "longbench_v2")
    answer = by_turns(RIGHT, OTHER)

    def verdict(path, body):
        return "[[YES]]" if "Milvus" in body["messages"][0]["content"] else "[[NO]]"

    def reply(path, body):
        return answer(body) if body.get("seed") in seeds else "The correct answer is (A)."

    seeds = {sample_seed(stream_seed(0, "evaluation", "frames", f"r{n}"), s) for n in range(3) for s in range(4)}
    with OpenAiServer(reply) as server, OpenAiServer(verdict) as judge_server:
        asking = asking_of(tokenizer, samples=4)
        found = run(server, asking, tmp_path / "out", [*RECORDS, letters], judge_server=judge_server)
        assert len(judge_server.judged()) == 3  # two samples of a question say the same; planted: 6 without sharing
        assert {r["temperature"] for r in judge_server.judged()} == {0.0}
        assert (found.judge.asked, found.judge.known) == (3, 3)
        again = run(server, asking, tmp_path / "again", [*RECORDS, letters], judge_server=judge_server)
        assert len(judge_server.judged()) == 3, "verdicts are kept over runs"
        assert again.judge.asked == 0
    read = results(tmp_path / "out")
    assert [read["frames", "r0", s].judge_score for s in (0, 1)] == [None, 1.0]
    assert [read["frames", "r0", s].score for s in (0, 1)] == [1.0, 1.0]
    assert [read["longbench_v2", "r7", s].score for s in range(4)] == [0.0] * 4
    assert {k: (r.score, r.judge_score) for k, r in results(tmp_path / "again").items()} == {
        k: (r.score, r.judge_score) for k, r in read.items()
    }


def test_a_judge_without_a_verdict_is_asked_once_more_and_counted(tokenizer, tmp_path):
    said = iter(["perhaps", "who knows", "hm", "[[YES]]", "no decision", "none"])
    with OpenAiServer(lambda path, body: OTHER) as server, OpenAiServer(lambda path, body: next(said)) as judge_server:
        asking = asking_of(tokenizer, samples=1)
        found = run(server, asking, tmp_path / "out", judge_server=judge_server, concurrency=1)
        asked = judge_server.judged()
        assert [r["temperature"] for r in asked] == [0.0, 0.7] * 3
        assert len({r["seed"] for r in asked}) == 6
        assert (found.tally.unclear, found.judge.unclear) == (2, 2)
        run(server, asking, tmp_path / "again", judge_server=judge_server)
        assert len(judge_server.judged()) == 6, "an unclear one stays unclear"
    assert [results(tmp_path / "out")["frames", f"r{n}", 0].judge_score for n in range(3)] == [None, 1.0, None]


def test_what_was_given_up_is_asked_for_by_the_next_run_alone(tokenizer, tmp_path):
    asking, out = asking_of(tokenizer), tmp_path / "out"
    broken = {3: Fault(status=500), 4: Fault(status=500)}  # one sample, tried twice
    with OpenAiServer(lambda path, body: RIGHT, fault=broken.get) as server:
        first = run(server, asking, out, concurrency=1, max_failures=1).tally
        assert (first.scored, first.num_left, len(first.failures)) == (5, 1, 1)
        assert first.failures[0].startswith("frames 'r1', sample 0: " + server.url)
        before = len(server.written())
        second = run(server, asking, out).tally
        assert (second.kept, second.written, second.num_left) == (5, 1, 0)
        assert len(server.written()) == before + 1
        third = run(server, asking, out).tally
        assert (third.kept, third.written, len(server.written())) == (6, 0, before + 1)


def test_too_many_failures_end_the_run_and_keep_what_there_is(tokenizer, tmp_path):
    said = r"2 requests were given up.*max_failures = 1.*answers 503"
    with OpenAiServer(lambda path, body: RIGHT, fault=lambda n: Fault(status=503) if n > 2 else None) as server:
        with_one = pytest.raises(TooManyFailures, match=said)
        with with_one:
            run(server, asking_of(tokenizer), tmp_path / "out", concurrency=1, max_failures=1)
    assert len(results(tmp_path / "out")) == 2


def test_an_output_without_a_result_is_scored_and_not_written_again(tokenizer, tmp_path):
    asking, out = asking_of(tokenizer), tmp_path / "out"
    with OpenAiServer(lambda path, body: RIGHT) as server:
        run(server, asking, out)
        kept = results(out)
        lines = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
        (out / "results.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])  # killed within a line
        before = len(server.written())
        tally = run(server, asking, out).tally
        assert len(server.written()) == before
    assert (tally.kept, tally.written, tally.scored) == (2, 0, 4)
    assert results(out) == kept


def test_a_judge_may_come_later_and_other_settings_may_not(tmp_path):
    folder = BenchmarkFolder(tmp_path / "out")
    identity = {"samples": 8, "seed": 0, "judge.model": None}
    assert folder.faults(identity) == []
    assert folder.begin(identity, {}) is False
    folder.results.write_text("{}\n")
    assert folder.faults(identity | {"samples": 4}) == [
        f"samples = 4: {folder.root} was begun with 8; give that or another --out"
    ]
    judged = identity | {"judge.model": "gpt", "judge.max_tokens": 9}
    assert folder.faults(judged) == []
    assert folder.begin(judged, {}) is True and not folder.results.exists()
    assert folder.faults(judged | {"judge.model": "other"})[0].startswith('judge.model = "other": ')
    assert json.loads(folder.settings.read_text())["identity"]["judge.model"] == "gpt"


def test_a_journal_has_one_writer_and_whole_lines(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"one\ntwo\nhal")
    journal = Journal(path)
    assert path.read_bytes() == b"one\ntwo\n"
    with pytest.raises(JournalBusy, match="is being written by another process"):
        Journal(path)
    journal.append("three")
    assert path.read_bytes() == b"one\ntwo\nthree\n", "before it is closed"
    journal.close()
    Journal(path).close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
