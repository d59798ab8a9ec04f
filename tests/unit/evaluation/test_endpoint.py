"""Requests to a real server that fails in every way: what is tried again, how often, and what is said in the end."""

import asyncio
import json
import socket

import pytest

from megatron_spell.config.benchmark_run import EndpointSection
from megatron_spell.evaluation.endpoint import BadAnswer, Endpoint, EndpointError, Refused
from tests.unit.evaluation.openai_server import Fault, OpenAiServer

BODY = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 5}


def text_of(answer: dict) -> str:
    if "choices" not in answer:
        raise BadAnswer("answers without choices")
    return answer["choices"][0]["text"]


def ask(server_url: str, times: int = 1, **settings):
    """Results or exceptions of `times` requests at once, and the endpoint."""

    async def all_of():
        quick = {"first_wait_s": 0.01, "longest_wait_s": 0.3, "timeout_s": 5, "connect_timeout_s": 1}
        endpoint = Endpoint(EndpointSection(url=server_url, **(quick | settings)), key="secret")
        asked = (endpoint.post("/completions", BODY, text_of) for _ in range(times))
        try:
            return await asyncio.gather(*asked, return_exceptions=True), endpoint
        finally:
            await endpoint.close()

    return asyncio.run(all_of())


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429),
        Fault(status=500),
        Fault(status=503, body="<html>gateway</html>"),
        Fault(cut=True),
        Fault(body="no json"),
        Fault(body="[1]"),
        Fault(body=json.dumps({"choice": []})),
    ],
    ids=lambda fault: f"{fault.status} {fault.body or ''}{'cut' * fault.cut}",
)
def test_what_may_pass_is_tried_again_and_counted(fault):
    with OpenAiServer(lambda path, body: "yes", fault=lambda number: fault if number < 2 else None) as server:
        (text,), endpoint = ask(server.url)
    assert text == "yes"
    assert (endpoint.asked.tries, endpoint.asked.retries, endpoint.asked.failed) == (3, 2, 0)
    assert len(server.requests) == 3
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_tries_are_bounded_and_the_last_reason_is_told():
    with OpenAiServer(lambda path, body: "yes", fault=lambda number: Fault(status=500)) as server:
        (error,), endpoint = ask(server.url, max_retries=3)
    assert isinstance(error, EndpointError)
    assert str(error) == f"{server.url}/v1/completions: answers 500: not now (given up after 4 tries)"
    assert (len(server.requests), endpoint.asked.failed) == (4, 1)


def test_a_request_that_is_wrong_is_not_made_again():
    said = json.dumps({"error": {"message": "the prompt is too long"}})
    with OpenAiServer(lambda path, body: "", fault=lambda number: Fault(status=400, body=said)) as server:
        (error,), endpoint = ask(f"{server.url}/v1/")
    assert isinstance(error, Refused)
    assert str(error) == f"{server.url}/v1/completions: answers 400: the prompt is too long"
    assert (len(server.requests), endpoint.asked.retries) == (1, 0)


def test_a_slow_answer_is_waited_for_no_longer_than_told():
    with OpenAiServer(lambda path, body: "late", fault=lambda number: Fault(delay_s=0.8)) as server:
        (error,), _ = ask(server.url, timeout_s=0.15, max_retries=1)
    assert str(error) == f"{server.url}/v1/completions: no answer within 0.15 s (given up after 2 tries)"


def test_nobody_there():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        (error,), _ = ask(url, max_retries=0)
    assert str(error).startswith(f"{url}/v1/completions: cannot be reached (")


def test_retry_after_is_heeded_up_to_the_longest_wait():
    fault = Fault(status=429, headers={"Retry-After": "100"})
    with OpenAiServer(lambda path, body: "yes", fault=lambda number: None if number else fault) as server:
        (text,), _ = ask(server.url, longest_wait_s=0.25)
    first, second = (request["time"] for request in server.requests)
    assert text == "yes"
    assert 0.24 < second - first < 2


def test_no_more_at_once_than_told():
    with OpenAiServer(lambda path, body: "yes", delay_s=0.03) as server:
        texts, _ = ask(server.url, times=12, max_concurrency=3)
    assert texts == ["yes"] * 12
    assert server.most_at_once == 3  # planted: 7 without the limit
    with OpenAiServer(lambda path, body: "yes", delay_s=0.1) as server:
        ask(server.url, times=12, max_concurrency=12)
    assert server.most_at_once > 3


def test_starts_are_evenly_spaced():
    with OpenAiServer(lambda path, body: "yes") as server:
        ask(server.url, times=6, requests_per_minute=1200)  # one every 50 ms
    times = sorted(request["time"] for request in server.requests)
    assert times[-1] - times[0] > 0.2


def test_extra_adds_fields_and_null_takes_one_out():
    extra = {"max_tokens": None, "max_completion_tokens": 5}
    with OpenAiServer(lambda path, body: "yes") as server:
        (_,), _ = ask(server.url, extra=extra)
    [body] = server.requests
    assert "max_tokens" not in body and body["max_completion_tokens"] == 5
