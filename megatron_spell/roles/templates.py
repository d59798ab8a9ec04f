"""Prompt templates: text files with `{{slot}}`, split once when loaded, filled with parts.

A part never becomes template text, so whatever stands in a document, a question or an answer is only shown.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_spell.types.play import TaskName
from megatron_spell.types.prompts import Literal, Part, Prompt, Quoted, Tokens

PACKAGE_FOLDER = Path(__file__).with_name("templates")
FRAGMENTS_FILE = "fragments.yaml"

_SLOT = re.compile(r"\{\{([^{}\n]*)\}\}")


class TemplateError(ValueError):
    """A template cannot be used; the message names the file and the slot."""


def _template_slots() -> dict[str, frozenset[str]]:
    slots = {"verifier": frozenset({"question", "answer", "gold"})}
    for task in TaskName:
        asked = {"documents", "target_letter"} if task == TaskName.MULTIPLE_CHOICE else {"documents"}
        slots[f"questioner_{task}"] = frozenset(asked)
        slots[f"questioner_{task}_history"] = frozenset(asked | {"examples"})
        slots[f"responder_{task}"] = frozenset({"documents", "question"})
    return slots


# Every template file `<name>.md` and the slots it must have; a slot may stand more than once.
TEMPLATE_SLOTS = _template_slots()

# Every entry of fragments.yaml and its slots.
FRAGMENT_SLOTS: dict[str, frozenset[str]] = {
    "document_separator": frozenset(),
    "example": frozenset({"question", "answer"}),
    "example_separator": frozenset(),
    "option": frozenset({"letter", "text"}),
    "option_separator": frozenset(),
    "no_documents": frozenset(),
}


@dataclass(frozen=True, slots=True)
class Templates:
    """All templates and fragments of one folder, split: even pieces are literal text, odd pieces are slot names."""

    pieces: Mapping[str, tuple[str, ...]]

    @classmethod
    def load(cls, folder: Path | None = None) -> "Templates":
        """Read `folder`, or the package's own templates when it is None.

        Every template file must be there; an entry that the folder's fragments.yaml lacks comes from the package.
        Raises TemplateError at the first file that is missing or has a wrong slot.
        """
        root = PACKAGE_FOLDER if folder is None else folder
        if not root.is_dir():
            raise TemplateError(f"{root}: is no folder; give one that holds {', '.join(_file_names())}")
        pieces = {name: _load_template(root / f"{name}.md", slots) for name, slots in TEMPLATE_SLOTS.items()}
        for source in dict.fromkeys((PACKAGE_FOLDER, root)):
            pieces |= _load_fragments(source / FRAGMENTS_FILE)
        return cls(pieces)

    def fill(self, name: str, **slots: Part | Sequence[Part]) -> Prompt:
        """The template or fragment `name` with its slots filled; literals that meet are made one.

        Raises TemplateError when `slots` are not exactly the template's.
        """
        if name not in self.pieces:
            raise TemplateError(f"{name}: is no template; known are {', '.join(self.pieces)}")
        pieces = self.pieces[name]
        _check_slots(
            name, set(pieces[1::2]), set(slots), "is not filled", "is filled but the template has no such slot"
        )
        parts: list[Part] = []
        for i, piece in enumerate(pieces):
            parts += _as_parts(slots[piece]) if i % 2 else [Literal(piece)]
        return merged(parts)

    def join(self, separator: str, items: Iterable[Part | Sequence[Part]]) -> Prompt:
        """The parts of all `items` with the fragment `separator` between them."""
        parts: list[Part] = []
        for i, item in enumerate(items):
            parts += [*(self.fill(separator) if i else ()), *_as_parts(item)]
        return merged(parts)


def merged(parts: Iterable[Part]) -> Prompt:
    """`parts` with neighbouring literals joined and empty ones gone, so that literal text is tokenised in one piece."""
    out: list[Part] = []
    for part in parts:
        if isinstance(part, Literal) and out and isinstance(out[-1], Literal):
            out[-1] = Literal(out[-1].text + part.text)
        elif part != Literal(""):
            out.append(part)
    return tuple(out)


def _as_parts(part: Part | Sequence[Part]) -> Sequence[Part]:
    return (part,) if isinstance(part, Literal | Quoted | Tokens) else part


def _file_names() -> list[str]:
    return [f"{name}.md" for name in TEMPLATE_SLOTS]


def _load_template(path: Path, slots: frozenset[str]) -> tuple[str, ...]:
    return _split(_read(path).strip("\n"), slots, str(path))


def _load_fragments(path: Path) -> dict[str, tuple[str, ...]]:
    if not path.exists():
        return {}
    try:
        texts = yaml.safe_load(_read(path)) or {}
    except yaml.YAMLError as error:
        raise TemplateError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(texts, dict):
        raise TemplateError(f"{path}: is a {type(texts).__name__}; write one `name: text` for each fragment")
    return {name: _load_fragment(f"{path}: {name}", name, text) for name, text in texts.items()}


def _load_fragment(where: str, name: str, text: object) -> tuple[str, ...]:
    if name not in FRAGMENT_SLOTS:
        raise TemplateError(f"{where}: is no fragment; known are {', '.join(FRAGMENT_SLOTS)}")
    if not isinstance(text, str):
        raise TemplateError(f"{where} = {text!r}: must be text; put it in quotes")
    return _split(text, FRAGMENT_SLOTS[name], where)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TemplateError(f"{path}: is missing; copy it from {PACKAGE_FOLDER} and edit it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: cannot be read: {error}") from None


def _split(text: str, slots: frozenset[str], where: str) -> tuple[str, ...]:
    pieces = tuple(_SLOT.split(text))
    for literal in pieces[::2]:
        if "{{" in literal:
            start = literal.index("{{")
            raise TemplateError(f"{where}: {literal[start : start + 30]!r} opens a slot and does not close it")
    _check_slots(where, set(slots), set(pieces[1::2]), "is missing", f"is no slot here; known are {_listed(slots)}")
    return pieces


def _check_slots(where: str, expected: set[str], found: set[str], missing: str, unknown: str) -> None:
    for slot in sorted(found - expected):
        raise TemplateError(f"{where}: {{{{{slot}}}}} {unknown}")
    for slot in sorted(expected - found):
        raise TemplateError(f"{where}: {{{{{slot}}}}} {missing}")


def _listed(slots: Iterable[str]) -> str:
    return ", ".join(f"{{{{{slot}}}}}" for slot in sorted(slots)) or "none"
