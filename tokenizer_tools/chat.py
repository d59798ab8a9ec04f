"""Check a chat template against what training and serving take for granted, and show what it makes of messages."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tokenizer_tools.chat_template import ChatTemplate, Messages, TemplateFault

OK, NOTE, FAULT = "ok", "note", "fault"
THINKING: tuple[bool | None, ...] = (None, True, False)
_ANSWER = "A play by Goethe\ue0f0"  # the last character is private use: no template writes it
_PADDED = "\n  padded \ue0f0 text \n"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; a `note` is something to know, a `fault` something to repair."""

    check: str
    status: str
    detail: str


@dataclass(frozen=True, slots=True)
class Rendering:
    """A prompt as text up to where generation begins; `thinking` None leaves enable_thinking out."""

    name: str
    thinking: bool | None
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ChatReport:
    renderings: tuple[Rendering, ...]
    findings: tuple[Finding, ...]

    @property
    def has_faults(self) -> bool:
        return any(finding.status == FAULT for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_chat(template: ChatTemplate, system: str, user: str) -> ChatReport:
    """Render the messages with thinking left out, on and off, and run every check."""
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings += check(template, user)
        except TemplateFault as error:
            findings.append(Finding(check.__name__.strip("_").replace("_", " "), FAULT, f"the template fails: {error}"))
    findings += _system_turn(template, system, user)
    return ChatReport(tuple(_previews(template, system, user)), tuple(findings))


def _previews(template: ChatTemplate, system: str, user: str) -> Iterator[Rendering]:
    cases = {"user": _asked(user), "system and user": [{"role": "system", "content": system}, *_asked(user)]}
    for name, messages in cases.items():
        seen: set[str] = set()
        for thinking in THINKING:
            try:
                text = template.render(messages, thinking=thinking)
            except TemplateFault:
                continue
            if text not in seen:  # a template that ignores enable_thinking is shown once
                yield Rendering(name, thinking, text, len(template.ids(text)))
            seen.add(text)


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _answered(user: str) -> list[dict[str, str]]:
    return [*_asked(user), {"role": "assistant", "content": _ANSWER}]


def _system_turn(template: ChatTemplate, system: str, user: str) -> Iterator[Finding]:
    try:
        text = template.render([{"role": "system", "content": system}, *_asked(user)])
    except TemplateFault as error:
        yield Finding("system turn", NOTE, f"the template refuses one: {error}")
        return
    split = [marker for marker in template.markers(text) if len(template.ids(marker)) != 1]
    if system not in text:
        yield Finding("system turn", NOTE, "the template drops its text")
    elif split:
        yield Finding("system turn", NOTE, f"is rendered, but {split[0]} is {len(template.ids(split[0]))} ids")
    else:
        yield Finding("system turn", OK, "is rendered")


def _thinking(template: ChatTemplate, user: str) -> Iterator[Finding]:
    on, off = (template.render(_asked(user), thinking=thinking) for thinking in (True, False))
    if on == off:
        yield Finding("thinking", NOTE, f"the template ignores {template.thinking_name}")
    elif off.startswith(on):
        yield Finding("thinking", OK, f"off adds {off[len(on) :]!r}")
    elif on.startswith(off):
        yield Finding("thinking", OK, f"on adds {on[len(off) :]!r}")
    else:
        yield Finding("thinking", OK, "on and off differ before the opening of the assistant's turn")


def _opening(template: ChatTemplate, user: str) -> Iterator[Finding]:
    """The generation prompt only adds to the rendered messages, as text and as ids."""
    name, added = "opening adds to the messages", ""
    for thinking in THINKING:
        messages = template.render(_asked(user), opening=False, thinking=thinking)
        prompt = template.render(_asked(user), thinking=thinking)
        if not prompt.startswith(messages):
            yield Finding(
                name, FAULT, f"the messages are rendered otherwise with it ({template.thinking_name} {thinking})"
            )
            return
        ids = template.ids(messages)
        if template.ids(prompt)[: len(ids)] != ids:
            yield Finding(name, FAULT, "the last token of the messages changes with it; open with a special token")
            return
        added = added or prompt[len(messages) :]
    yield Finding(name, OK if added else NOTE, repr(added) if added else "the template opens no assistant's turn")


def _continuation(template: ChatTemplate, user: str) -> Iterator[Finding]:
    """A finished conversation begins with the prompt that led to it, and ends with a stop token."""
    name = "ends where generation begins"
    whole, prompt = template.render(_answered(user), opening=False), template.render(_asked(user))
    if _ANSWER not in whole:
        yield Finding(name, FAULT, "the answer is not rendered as it was given")
        return
    before, after = whole.split(_ANSWER, 1)
    if not before.startswith(prompt):
        yield Finding(name, FAULT, f"an answer is rendered after {_tail(before)}, but generated after {_tail(prompt)}")
    elif before != prompt:
        yield Finding(name, NOTE, f"a finished answer is rendered after a further {before[len(prompt) :]!r}")
    else:
        yield Finding(name, OK, f"after {_tail(prompt)}")
    yield _turn_end(template, after)


def _turn_end(template: ChatTemplate, after: str) -> Finding:
    name, stops = "turn ends with a stop id", template.stop_ids or (template.pretrained.eos_token_id,)
    ends = template.ids(after)[:1]
    if not ends:
        return Finding(name, FAULT, "nothing follows the answer; a trained model would not learn to stop")
    shown = f"{template.token(ends[0])} (id {ends[0]})"
    if ends[0] not in stops:
        return Finding(name, FAULT, f"an answer ends with {shown}, generation stops at ids {list(stops)}")
    return Finding(name, OK, shown)


def _stop_settings(template: ChatTemplate, user: str) -> Iterator[Finding]:
    name, eos, stops = "eos in all files", template.pretrained.eos_token_id, template.stop_ids
    stated = template.config.get("eos_token_id")
    of_model = [n for n in (stated if isinstance(stated, list) else [stated]) if n is not None]
    if eos is None:
        yield Finding(name, FAULT, "the tokenizer names no eos token")
    elif not stops:
        yield Finding(name, NOTE, f"generation_config.json states no eos_token_id; the tokenizer's is {eos}")
    elif eos not in stops:
        yield Finding(name, FAULT, f"the tokenizer's eos is {eos}, generation_config.json's {list(stops)}")
    elif of_model and not set(of_model) & set(stops):
        yield Finding(name, NOTE, f"config.json says {of_model}, generation_config.json {list(stops)}")
    else:
        yield Finding(name, OK, f"id {eos} ({template.token(eos)}); generation stops at {list(stops)}")


def _single_ids(template: ChatTemplate, user: str) -> Iterator[Finding]:
    text = template.render(_answered(user), opening=False) + template.render(_asked(user))
    markers = dict.fromkeys((*template.special, *template.markers(text)))
    split = {marker: len(template.ids(marker)) for marker in markers if len(template.ids(marker)) != 1}
    if split:
        shown = ", ".join(f"{marker} is {count} ids" for marker, count in split.items())
        yield Finding("special tokens are single ids", FAULT, shown)
    else:
        yield Finding("special tokens are single ids", OK, f"{len(markers)} of {len(markers)}")


def _user_text(template: ChatTemplate, user: str) -> Iterator[Finding]:
    """What a user writes stays what it was, look-alikes of special tokens too."""
    padded = _PADDED in template.render(_asked(_PADDED))
    detail = "blanks around it are kept" if padded else "the template strips blanks around it"
    yield Finding("user text is kept", OK if padded else NOTE, detail)
    forged = " ".join(template.special)
    spelled = template.ids(forged, spelled_out=True)
    numbers = set(template.special.values())
    if numbers & set(spelled) or template.decode(spelled) != forged:
        yield Finding("look-alikes can be spelled out", FAULT, "special tokens in plain text do not come back as text")
    else:
        yield Finding("look-alikes can be spelled out", OK, f"{len(numbers)} of {len(numbers)} come back as text")
    plain = sum(number in numbers for number in template.ids(template.render(_asked(user))))
    count = sum(number in numbers for number in template.ids(template.render(_asked(forged)))) - plain
    if count > 0:
        yield Finding(
            "look-alikes in one string",
            NOTE,
            f"{count} special ids come out of a user's text when the rendered text is encoded as one; encode user text "
            "by itself, with special tokens as characters",
        )


def _begin_token(template: ChatTemplate, user: str) -> Iterator[Finding]:
    text = template.render(_asked(user))
    bos = template.pretrained.bos_token
    encoded = template.pretrained(text)["input_ids"]
    if bos and text.startswith(bos) and encoded[:2] == [template.pretrained.bos_token_id] * 2:
        yield Finding("one bos", NOTE, f"template and tokenizer both add {bos}; encode with add_special_tokens=False")


_CHECKS: tuple[Callable[[ChatTemplate, str], Iterator[Finding]], ...] = (
    _thinking,
    _opening,
    _continuation,
    _stop_settings,
    _single_ids,
    _user_text,
    _begin_token,
)


def _tail(text: str) -> str:
    return repr(text[-40:])


__all__ = ["ChatReport", "Finding", "Messages", "Rendering", "check_chat"]
