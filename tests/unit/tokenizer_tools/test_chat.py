"""Chat templates: good ones pass, and every check finds the fault that is planted for it."""

import json
import time

import pytest

from tests.tiny_tokenizer import CHAT_TEMPLATE, write_byte_tokenizer
from tokenizer_tools import chat_template
from tokenizer_tools.chat import FAULT, NOTE, OK, check_chat
from tokenizer_tools.chat_template import ChatTemplate
from tokenizer_tools.errors import TokenizerFileError

TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n"
THINKING = TURNS + OPENING + "{% if enable_thinking is false %}[no thoughts]\n{% endif %}{% endif %}"


def _report(folder, template=CHAT_TEMPLATE, generation=None):
    write_byte_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return check_chat(ChatTemplate(folder), "Be short.", "What is Faust?")


def _found(report):
    return {finding.check: finding for finding in report.findings}


def test_a_good_template_passes_and_is_shown(tmp_path):
    report = _report(tmp_path)
    assert not report.has_faults
    found = _found(report)
    assert found["opening adds to the messages"].detail == repr("<|im_start|>assistant\n")
    assert found["thinking"].status == NOTE and "ignores enable_thinking" in found["thinking"].detail
    assert found["turn ends with a stop id"].detail == "<|im_end|> (id 258)"
    assert found["look-alikes in one string"].detail.startswith("3 special ids")
    user, both = report.renderings
    assert user.text == "<|im_start|>user\nWhat is Faust?<|im_end|>\n<|im_start|>assistant\n"
    assert user.num_tokens == 3 + len("user\nWhat is Faust?\nassistant\n")  # one token a byte
    assert both.text.startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user")


def test_thinking_on_and_off_are_both_shown(tmp_path):
    report = _report(tmp_path, THINKING)
    assert _found(report)["thinking"].detail == "off adds '[no thoughts]\\n'"
    assert [one.thinking for one in report.renderings if one.name == "user"] == [None, False]
    assert not report.has_faults


@pytest.mark.parametrize(
    ("template", "check", "status", "detail"),
    [
        (TURNS, "opening adds to the messages", NOTE, "opens no assistant's turn"),
        (
            "{% if add_generation_prompt %}!{% endif %}" + TURNS,
            "opening adds to the messages",
            FAULT,
            "rendered otherwise with it",
        ),
        (TURNS + "{% if add_generation_prompt %}BOT:{% endif %}", "ends where generation begins", FAULT, "BOT:"),
        (TURNS.replace("<|im_end|>", "") + OPENING + "{% endif %}", "turn ends with a stop id", FAULT, "stops at ids"),
        (TURNS.replace("<|im_end|>\n", "") + OPENING + "{% endif %}",
         "turn ends with a stop id", FAULT, "nothing follows"),
        (
            CHAT_TEMPLATE.replace("<|im_start|>", "<|begin|>"),
            "special tokens are single ids",
            FAULT,
            "<|begin|> is 9 ids",
        ),
        (CHAT_TEMPLATE.replace("m['content']", "m['content'] | trim"), "user text is kept", NOTE, "strips blanks"),
        (CHAT_TEMPLATE.replace("m['content']", "m['content'] | upper"),
         "ends where generation begins", FAULT, "as it was given"),
        ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHAT_TEMPLATE,
         "system turn", NOTE, "refuses one: none"),
        (CHAT_TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"),
         "system turn", NOTE, "drops its text"),
        ("{{ messages.missing.field }}", "thinking", FAULT, "the template fails"),
        ("{{ ''.__class__.__mro__ }}", "thinking", FAULT, "the template fails"),  # outside the sandbox
    ],
)  # fmt: skip
def test_planted_faults_are_found(tmp_path, template, check, status, detail):
    finding = _found(_report(tmp_path, template))[check]
    assert finding.status == status and detail in finding.detail


@pytest.mark.parametrize(
    ("generation", "status", "detail"),
    [
        ({"eos_token_id": [258, 256]}, OK, "generation stops at [258, 256]"),
        ({"eos_token_id": 256}, FAULT, "the tokenizer's eos is 258, generation_config.json's [256]"),
        ({}, NOTE, "states no eos_token_id"),
    ],
)
def test_stop_ids_are_compared(tmp_path, generation, status, detail):
    finding = _found(_report(tmp_path, generation=generation))["eos in all files"]
    assert finding.status == status and detail in finding.detail


def test_a_template_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_template, "TIME_LIMIT_S", 0.2)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    start = time.monotonic()
    finding = _found(_report(tmp_path, endless))["thinking"]
    assert "ran longer than 0.2 s" in finding.detail and time.monotonic() - start < 60


def test_folders_without_a_template_are_refused(tmp_path):
    write_byte_tokenizer(tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerFileError, match="has no chat template"):
        ChatTemplate(tmp_path / "a")
    with pytest.raises(TokenizerFileError, match="is not a folder"):
        ChatTemplate(tmp_path / "none")
