"""Prompts as parts, so that text which users or models wrote can never act as template or control token.

A template is split once into literals and slots; slots are filled with parts, and the parts are tokenised one by one:
literals with the tokenizer's special tokens recognised, everything else with them spelled out as plain text.
"""

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Literal:
    """Text that the project or the user's template wrote."""

    text: str


@dataclass(frozen=True, slots=True)
class Quoted:
    """Text from a document, a question or an answer; special tokens in it are only characters."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Ready token ids, for documents out of the store."""

    token_ids_T: np.ndarray


Part = Literal | Quoted | Tokens
Prompt = tuple[Part, ...]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u0085\u2028\u2029\ufeff\ufffe\uffff]|[\ud800-\udfff]")
_OUR_TAGS = re.compile(r"<(?=\s*(?:/\s*)?(?:text|question|answer|examples|think)\b)", re.IGNORECASE)


def neutralise(text: str) -> str:
    """`text` without control characters, and with the tags our templates use made inert ("</text>" -> "‹/text>").

    Newlines and tabs stay. Idempotent. Used once when a store is built, and on everything a model wrote before it
    is shown to another role.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _OUR_TAGS.sub("\u2039", _CONTROL.sub(" ", text))
