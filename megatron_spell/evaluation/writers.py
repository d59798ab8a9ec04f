"""Who writes the answers of an evaluation: engines of our own, or a server that speaks OpenAI's API."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np

from megatron_spell.evaluation.endpoint import Answer, BadAnswer, Endpoint, EndpointError, Refused
from megatron_spell.rollout.engine import EngineDied, EngineUnusable, SamplingSpec
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.play import Completion
from megatron_spell.types.seeds import stream_seed

# What a model folder's generation_config.json would change without a word, and what vLLM alone understands.
VLLM_FIELDS = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "add_special_tokens": False}


class WriterGone(ValueError):
    """Nobody is left who could write; an evaluation ends, and can be gone on with."""


@dataclass(frozen=True, slots=True)
class Written:
    """One sample. `finish_reason` is "stop", "length" or the server's own word; `num_tokens` are those written."""

    text: str
    finish_reason: str
    num_tokens: int


class Writer(Protocol):
    """Continues chat-formatted prompts, many at a time."""

    async def write(self, prompt_ids_T: np.ndarray, spec: SamplingSpec, text: str, key: str) -> Written:
        """Sample `spec.first` of `spec.seed`: the same words whenever it is asked again.

        `text` is the user's turn in words, for whoever takes no token ids, and `key` names prompts that share a prefix.
        Raises EngineError, EndpointError or WriterGone.
        """
        ...


class Generates(Protocol):
    """What an evaluation needs of an engine, or of several behind a pool."""

    async def generate(
        self, prompt_ids_T: np.ndarray, spec: SamplingSpec, *, key: str | None = None
    ) -> list[Completion]: ...


@dataclass(frozen=True, slots=True)
class EngineWriter:
    """Engines of our own."""

    engine: Generates
    tokenizer: Tokenizer

    async def write(self, prompt_ids_T: np.ndarray, spec: SamplingSpec, text: str, key: str) -> Written:
        try:
            (completion,) = await self.engine.generate(prompt_ids_T, spec, key=key)
        except (EngineDied, EngineUnusable) as error:
            raise WriterGone(str(error)) from error
        written = self.tokenizer.decode(completion.token_ids_T)
        return Written(written, completion.finish_reason, len(completion.token_ids_T))


@dataclass(frozen=True, slots=True)
class TokenWriter:
    """`/v1/completions` with token ids: what the server reads is what was counted and cut."""

    endpoint: Endpoint
    model: str
    fields: Mapping[str, Any]  # further ones of every body
    prompts: ClassVar[str] = "token_ids"

    async def write(self, prompt_ids_T: np.ndarray, spec: SamplingSpec, text: str, key: str) -> Written:
        body = {**_sampling(self.model, spec), "prompt": np.asarray(prompt_ids_T).tolist(), **self.fields}
        return await self.endpoint.post(
            "/completions", body, partial(read_choice, text_of=lambda choice: choice["text"])
        )


@dataclass(frozen=True, slots=True)
class ChatWriter:
    """`/v1/chat/completions` with the user's turn as text, for servers that take no token ids."""

    endpoint: Endpoint
    model: str
    fields: Mapping[str, Any]
    prompts: ClassVar[str] = "chat"

    async def write(self, prompt_ids_T: np.ndarray, spec: SamplingSpec, text: str, key: str) -> Written:
        body = {**_sampling(self.model, spec), "messages": [{"role": "user", "content": text}], **self.fields}
        return await self.endpoint.post("/chat/completions", body, read_message)


def sample_seed(seed: int, sample: int) -> int:
    """What a sample of a spec with `seed` is drawn from, in engines (rollout/vllm_settings.py) and servers alike."""
    return stream_seed(seed, "sample", sample)


def read_choice(answer: Answer, text_of: Callable[[Answer], str | None]) -> Written:
    """The only choice of `answer`. Raises BadAnswer when it is not of OpenAI's form, or was cut off by the server."""
    try:
        (choice,) = answer["choices"]
        text, reason, num_tokens = text_of(choice), choice["finish_reason"], answer["usage"]["completion_tokens"]
    except (KeyError, TypeError, ValueError):
        raise BadAnswer("answers without one choice in OpenAI's form") from None
    if not isinstance(text, str) or not isinstance(reason, str) or not isinstance(num_tokens, int):
        raise BadAnswer("answers without text, finish_reason and completion_tokens")
    if reason in ("abort", "error"):
        raise BadAnswer(f"ended a completion with {reason!r}")
    return Written(text, reason, num_tokens)


def read_message(answer: Answer) -> Written:
    """A chat's answer. A server that keeps thinking apart leaves the content out when that did not end."""
    return read_choice(answer, lambda choice: choice["message"]["content"] or "")


def _read_models(answer: Answer) -> dict[str, Answer]:
    listed = answer.get("data")
    if not isinstance(listed, list) or not all(isinstance(model, dict) and "id" in model for model in listed):
        raise BadAnswer("lists no models")
    return {str(model["id"]): model for model in listed}


async def served_model(endpoint: Endpoint, wanted: str | None) -> Answer:
    """The entry of the model `wanted`, or of the only one. Raises EndpointError."""
    models = await endpoint.get("/models", _read_models)
    if wanted is None and len(models) == 1:
        return next(iter(models.values()))
    if wanted in models:
        return models[wanted]
    serves = f"serves {', '.join(sorted(models)) or 'nothing'}"
    said = "name one of them" if wanted is None else f"not {wanted!r}"
    raise EndpointError(f"{endpoint.address}: {serves}; {said}")


async def connect_writer(
    endpoint: Endpoint, entry: Answer, prompts: str, chat: ChatFormat, stop_ids: Sequence[int]
) -> TokenWriter | ChatWriter:
    """A writer for the served model `entry`. Raises EndpointError.

    With `prompts` "auto" the server is asked for one token after a few ids: one that takes them, and counts as many, is
    given ids from then on, any other text.
    """
    model = str(entry["id"])
    fields = {**VLLM_FIELDS, "stop_token_ids": list(stop_ids)} if entry.get("owned_by") == "vllm" else {}
    by_tokens = TokenWriter(endpoint, model, fields)
    by_chat = ChatWriter(endpoint, model, {k: v for k, v in fields.items() if k != "add_special_tokens"})
    if prompts == "chat":
        return by_chat
    probe = chat.encode(())
    body = {"model": model, "prompt": probe.tolist(), "max_tokens": 1, "temperature": 0.0, **fields}
    try:
        counted = await endpoint.post(
            "/completions", body, lambda answer: (answer.get("usage") or {}).get("prompt_tokens")
        )
    except Refused as error:
        if prompts == "token_ids":
            raise EndpointError(f"{error}; set server.prompts to chat") from None
        return by_chat
    if counted == len(probe):
        return by_tokens
    if prompts == "token_ids":
        why = f"counts {counted} tokens in a prompt of {len(probe)}"
        raise EndpointError(f"{endpoint.address}: {why}; give its own tokenizer, or set server.prompts to chat")
    return by_chat


def _sampling(model: str, spec: SamplingSpec) -> dict[str, Any]:
    seed = {} if spec.seed is None else {"seed": sample_seed(spec.seed, spec.first)}
    return {
        "model": model,
        "max_tokens": spec.max_tokens,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        **seed,
    }
