"""Settings of `megatron-spell evaluate`: which files, who writes, who judges. Defaults are the paper's protocol."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from megatron_spell.config.schema import RolloutSection
from megatron_spell.config.section import NonNegativeInt, PositiveFloat, PositiveInt, Section


class EndpointSection(Section):
    """A server that speaks OpenAI's API, and how it is asked."""

    url: str | None = None  # http://host:port, with or without /v1
    model: str | None = None  # name that the server serves it under; null: the only one it serves
    api_key_env: str | None = None  # environment variable that holds the key; null: no key is sent
    max_concurrency: PositiveInt = 64  # requests under way at the same time, at most
    requests_per_minute: PositiveFloat | None = None  # begun, at most, evenly spaced; null: no limit
    max_retries: NonNegativeInt = 5  # of one request, after 408, 409, 429, 5xx, a lost connection or a broken answer
    first_wait_s: PositiveFloat = 1.0  # before the first retry; doubled for each further one
    longest_wait_s: PositiveFloat = 60.0  # before any retry, whatever Retry-After says
    timeout_s: PositiveFloat = 1800.0  # longest wait for one answer
    connect_timeout_s: PositiveFloat = 10.0  # longest wait for a connection
    extra: dict[str, JsonValue] | None = None  # further fields of every request's body; null takes one out


class ServerSection(EndpointSection):
    """The server that writes answers."""

    prompts: Literal["auto", "token_ids", "chat"] = (
        "auto"  # token ids to /v1/completions, or text to /v1/chat/completions; auto: ids where the server counts alike
    )


class JudgeSection(EndpointSection):
    """The judge: asked about answers that the rule refuses, at temperature 0."""

    max_tokens: PositiveInt = 8192  # longest judgment
    retry_temperature: Annotated[float, Field(gt=0, le=2)] = (
        0.7  # of the one further try after a judgment without a verdict: at 0 it would say the same again
    )
    cache: Path | None = None  # file of judgments kept over runs; null: judgments.sqlite beside the output folder


class BenchmarkRunConfig(Section):
    files: Annotated[tuple[str, ...], Field(min_length=1)]  # FILE or NAME=FILE, in the benchmarks' own formats
    out: Path  # folder of this evaluation; one that was interrupted is gone on from
    model: Path | None = None  # Hugging Face folder to write with, by vLLM engines of our own; else server.url
    tokenizer: Path | None = None  # folder with tokenizer and chat template; null: that of model
    enable_thinking: bool | None = None  # passed to the chat template where it knows it
    server: ServerSection = ServerSection()  # who writes, where that is not model
    judge: JudgeSection = JudgeSection()
    label: str | None = None  # of this evaluation, for people; null: the model's name
    paper_model: str | None = None  # the paper's model to stand beside; null: the one that the label names, if any
    beside: tuple[Path, ...] = ()  # folders of other evaluations that the report shows too
    rule_only: bool = False  # no judge
    no_documents: bool = False  # documents are withheld: what is known by the way
    benchmarks: tuple[str, ...] = ()  # of the files' benchmarks only these; empty: all
    limit: PositiveInt | None = None  # first records of each file; null: all
    samples: PositiveInt = 8  # of each record, with distinct seeds
    seed: NonNegativeInt = 0  # of every sample
    max_input_tokens: PositiveInt = 16384  # a longer prompt loses its middle; the paper's other limit is 100,000
    max_tokens: PositiveInt = 4096  # longest output; 20,000 for models that think
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7  # 0 is greedy
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95  # of every sample
    templates: Path | None = None  # folder of templates; None: the package's own
    max_failures: NonNegativeInt = 16  # requests given up, beyond which the evaluation ends; it can be gone on with
    rollout: RolloutSection = RolloutSection()  # of engines of our own; max_model_len follows the lengths if not given
    ray_address: str | None = None  # None: Ray starts itself on this machine; "auto" or host:port joins a cluster
