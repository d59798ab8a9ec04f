"""`megatron-spell evaluate` as a user gives it: refusals of one line, a whole evaluation, and one that is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_spell.cli.main import app
from tests.tiny_tokenizer import write_byte_tokenizer
from tests.unit.evaluation.made_records import FRAMES, LONGBENCH_V2
from tests.unit.evaluation.openai_server import OpenAiServer

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "examples/quickstart/base_model"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def frames(tmp_path) -> Path:
    return write(tmp_path / "frames.jsonl", [FRAMES | {"ID": str(n), "Prompt": f"Who came {n}th?"} for n in range(10)])


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments) -> tuple[int, list[str], str]:
    """Exit code, lines of standard error, standard output."""
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr.splitlines(), result.stdout


def answer(path: str, body: dict) -> str:
    return "[[YES]]" if path == "chat" else "The correct answer is somebody else."


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_whole_evaluation_and_nothing_again(frames, tokenizer, tmp_path):
    out = tmp_path / "runs" / "out"
    with OpenAiServer(answer) as server:
        command = [frames, "--server", server.url, "--tokenizer", tokenizer, "--judge", server.url, "--out", out]
        command += ["--samples", 2, "--max-tokens", 50, "--set", "judge.max_tokens=40", "--limit", 6]
        code, errors, said = run(*command)
        assert (code, errors) == (0, [])
        assert "6 records, 2 sample(s) each: 12; into" in said
        assert "0 samples were there, 12 written, 12 scored, " in said
        assert "6 judgments asked for, 6 known, 0 samples judge_unclear, 0 retries" in said
        asked = (len(server.written()), len(server.judged()))
        assert asked == (12, 6)
        code, _, said = run(*command)
        assert code == 0 and "12 samples were there, 0 written, 0 scored" in said
        assert (len(server.written()), len(server.judged())) == asked
        code, errors, _ = run(*command, "--samples", 3)
        assert code == 2
        assert errors == [f"megatron-spell: samples = 3: {out} was begun with 2; give that or another --out"]
    assert {(r["rule_score"], r["judge_score"], r["score"]) for r in lines(out / "results.jsonl")} == {(0.0, 1.0, 1.0)}
    assert (out.parent / "judgments.sqlite").is_file()


def test_a_rule_only_run_needs_no_judge_and_may_withhold_documents(frames, tokenizer, tmp_path):
    out = tmp_path / "out"
    with OpenAiServer(answer) as server:
        where = ["--server", server.url, "--tokenizer", tokenizer, "--out", out, "--samples", 1, "--max-tokens", 9]
        code, errors, said = run(frames, *where, "--rule-only", "--no-documents")
        assert (code, errors) == (0, [])
        assert "documents are withheld" in said
        assert server.judged() == []
        prompts = [bytes(i for i in r["prompt"] if i < 256) for r in server.written()]
    assert prompts and {r["documents"] for r in lines(out / "results.jsonl")} == {False}
    assert {r["score"] for r in lines(out / "results.jsonl")} == {0.0}


def test_files_of_one_name_are_told_apart_by_what_they_hold(frames, tokenizer, tmp_path):
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "frames.jsonl", [LONGBENCH_V2])
    with OpenAiServer(answer) as server:
        where = ["--server", server.url, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--rule-only"]
        assert run(frames, other, *where, "--samples", 1)[0] == 0
        assert run(other, frames, *where, "--samples", 1)[0] == 0, "in another order they are the same"
        for path in (frames, other):
            kept = path.read_text()
            path.write_text(kept.replace("?", "??"))
            code, (error,), _ = run(frames, other, *where, "--samples", 1)
            assert code == 2 and error.startswith('megatron-spell: files = [["frames.jsonl", '), error
            assert error.count("frames.jsonl") == 2, "the other file is not named"
            path.write_text(kept)


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def test_what_cannot_work_is_told_before_anything_is_asked(frames, tokenizer, tmp_path):
    out, url = tmp_path / "out", f"http://127.0.0.1:{closed_port()}"
    server = ["--server", url, "--tokenizer", tokenizer, "--out", out]
    told = {
        (frames, "--out", out): ["model: give either", "judge.url: give either", "tokenizer: none"],
        (frames, *server): ["judge.url: give either"],
        (frames, *server, "--rule-only", "--model", QUICKSTART): ["model: give either", "max_input_tokens = 16384"],
        (frames, *server[:2], "--out", out, "--rule-only"): ["tokenizer: none to count"],
        (tmp_path / "no.jsonl", *server, "--rule-only"): [f"{tmp_path}/no.jsonl: cannot be read"],
        (frames, *server, "--rule-only"): [f"{url}/v1/models: cannot be reached"],
        (frames, *server, "--judge", url): [f"{url}/v1/models: cannot be reached"] * 2,
        (frames, *server, "--rule-only", "--benchmarks", "frame"): ["benchmarks = frame: is none; use docmath"],
        (frames, *server, "--rule-only", "--benchmarks", "musique"): ["benchmarks = musique: no file holds"],
        (frames, *server, "--rule-only", "--set", "server.timeout=3"): ["server.timeout: unknown field; did you mean"],
        (frames, *server, "--rule-only", "--samples", 0): ["samples = 0: input should be greater"],
        (frames, "--model", QUICKSTART, "--out", out, "--rule-only"): ["max_input_tokens = 16384: with max_tokens"],
        (frames, "--rule-only"): ["out: is missing"],
        (frames, "--server", "localhost:80", *server[2:], "--rule-only"): ["url = localhost:80: is no address"],
    }
    for arguments, expected in told.items():
        code, errors, _ = run(*arguments)
        assert code == 2, arguments
        assert len(errors) == len(expected), errors
        for line, begin in zip(errors, expected):
            assert line.startswith(f"megatron-spell: {begin}"), line
    assert not out.exists()


def test_records_without_documents_are_refused_unless_they_are_withheld(tokenizer, tmp_path):
    bare = {name: value for name, value in FRAMES.items() if name != "wiki_items"}
    file = write(tmp_path / "frames.jsonl", [bare])
    code, errors, _ = run(
        file, "--server", "http://x", "--tokenizer", tokenizer, "--rule-only", "--out", tmp_path / "o"
    )
    assert code == 2 and len(errors) == 1
    assert errors[0].startswith(f"megatron-spell: {file}:1: 1 record(s) lack documents")


def test_a_server_with_too_little_room_is_told(frames, tokenizer, tmp_path):
    small = ({"id": "a", "max_model_len": 4096}, {"id": "b"})
    with OpenAiServer(answer, models=small) as server:
        where = [frames, "--server", server.url, "--tokenizer", tokenizer, "--out", tmp_path / "o", "--rule-only"]
        assert run(*where)[1] == [f"megatron-spell: {server.url}/v1: serves a, b; name one of them"]
        (error,) = run(*where, "--served-model", "a")[1]
        assert "max_input_tokens = 16384: with max_tokens = 4096 more than the 4096 tokens of a there" in error
        (error,) = run(*where, "--served-model", "b", "--set", "server.api_key_env=NO_SUCH_KEY")[1]
        assert "api_key_env = NO_SUCH_KEY: is not set" in error
        assert server.requests == []


def test_check_says_what_the_files_hold(frames, tmp_path):
    letters = write(tmp_path / "v2.jsonl", [LONGBENCH_V2])
    code, _, said = run("--check", frames, letters)
    assert code == 0
    assert "frames, 10 records" in said and "longbench_v2, 1 record" in said


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_without_repeating_a_request(frames, tokenizer, tmp_path):
    out = tmp_path / "out"
    with OpenAiServer(answer, delay_s=0.02) as server:
        where = ["--server", server.url, "--tokenizer", str(tokenizer), "--out", str(out), "--rule-only"]
        command = ["evaluate", str(frames), *where, "--max-tokens", "9", "--set", "server.max_concurrency=2"]
        process = subprocess.Popen([sys.executable, "-m", "megatron_spell.cli.main", *command], cwd=ROOT)
        wait_for(lambda: len(server.written()) >= 20, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = {(r["record_id"], r["sample"]) for r in lines(out / "outputs.jsonl")}
        assert 15 <= len(kept) < 80
        with (out / "outputs.jsonl").open("ab") as file:
            file.write(b'{"benchmark":"frames","record_id":"0","sa')  # as if killed within a line
        before = len(server.written())
        seeds = {r["seed"] for r in lines_of_kept(out, kept)}
        code, errors, said = run(*command[1:])
        assert (code, errors) == (0, []), said
        repeated = seeds & {r["seed"] for r in server.written()[before:]}
        assert not repeated
        assert len(server.written()) - before == 80 - len(kept)
        assert len(server.written()) <= 80 + 2, "only what was under way when it was killed"
    assert len({(r["record_id"], r["sample"]) for r in lines(out / "results.jsonl")}) == 80


def lines_of_kept(out: Path, kept: set) -> list[dict]:
    whole = [line for line in (out / "outputs.jsonl").read_text().splitlines() if line.endswith("}")]
    return [r for r in map(json.loads, whole) if (r["record_id"], r["sample"]) in kept]


def wait_for(condition, process: subprocess.Popen, limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
