import shutil

import numpy as np
import pytest

from megatron_spell.roles.templates import (
    FRAGMENT_SLOTS,
    PACKAGE_FOLDER,
    TEMPLATE_SLOTS,
    TemplateError,
    Templates,
    merged,
)
from megatron_spell.types.play import TaskName
from megatron_spell.types.prompts import Literal, Quoted, Tokens


@pytest.fixture
def folder(tmp_path):
    """A folder with a copy of the package's templates, without fragments."""
    target = tmp_path / "own"
    shutil.copytree(PACKAGE_FOLDER, target)
    (target / "fragments.yaml").unlink()
    return target


def test_the_package_holds_the_ten_templates_and_every_fragment():
    assert len(TEMPLATE_SLOTS) == 10
    assert set(Templates.load().pieces) == set(TEMPLATE_SLOTS) | set(FRAGMENT_SLOTS)


def test_documents_stand_first_and_behind_the_same_words_in_every_prompt_that_has_them():
    pieces = Templates.load().pieces
    heads = {pieces[name][:2] for name, slots in TEMPLATE_SLOTS.items() if "documents" in slots}
    assert heads == {("<text>\n", "documents")}


@pytest.mark.parametrize("name", TEMPLATE_SLOTS)
def test_a_missing_template_file_is_named(folder, name):
    (folder / f"{name}.md").unlink()
    with pytest.raises(TemplateError, match=rf"{name}\.md: is missing"):
        Templates.load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(TemplateError, match="nowhere: is no folder"):
        Templates.load(tmp_path / "nowhere")


def test_an_undecodable_file_is_named(folder):
    (folder / "verifier.md").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match=r"verifier\.md: cannot be read"):
        Templates.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{question}} {{answer}}", r"verifier\.md: \{\{gold\}\} is missing"),
        ("{{question}} {{answer}} {{gold}} {{documents}}", r"\{\{documents\}\} is no slot here; known are .*gold"),
        ("{{question}} {{answer}} {{gold}} {{ gold }}", r"\{\{ gold \}\} is no slot here"),
        ("{{question}} {{answer}} {{gold}} {{gold", r"'\{\{gold' opens a slot"),
    ],
)
def test_a_wrong_slot_is_named_with_its_file(folder, text, message):
    (folder / "verifier.md").write_text(text)
    with pytest.raises(TemplateError, match=message):
        Templates.load(folder)


def test_fragments_fall_back_one_by_one(folder):
    (folder / "fragments.yaml").write_text('document_separator: "#"\n')
    own, package = Templates.load(folder), Templates.load()
    assert own.fill("document_separator") == (Literal("#"),)
    assert own.pieces["option"] == package.pieces["option"]


@pytest.mark.parametrize("text", ["", "# nothing here\n"])
def test_an_empty_fragments_file_changes_nothing(folder, text):
    (folder / "fragments.yaml").write_text(text)
    assert Templates.load(folder).pieces == Templates.load().pieces


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("separator: x", r"fragments\.yaml: separator: is no fragment; known are document_separator"),
        ("option: 3", r"option = 3: must be text"),
        ('option: "{{letter}}"', r"\{\{text\}\} is missing"),
        ("- a\n- b", r"fragments\.yaml: is a list"),
        ("a: [", r"fragments\.yaml: is not YAML"),
    ],
)
def test_a_wrong_fragment_is_named(folder, text, message):
    (folder / "fragments.yaml").write_text(text)
    with pytest.raises(TemplateError, match=message):
        Templates.load(folder)


def test_an_error_is_one_line(folder):
    (folder / "fragments.yaml").write_text("a: [\nb: {")
    with pytest.raises(TemplateError) as caught:
        Templates.load(folder)
    assert "\n" not in str(caught.value)


def test_filling_needs_exactly_the_slots():
    templates = Templates.load()
    with pytest.raises(TemplateError, match=r"option: \{\{text\}\} is not filled"):
        templates.fill("option", letter=Literal("A"))
    with pytest.raises(TemplateError, match=r"no_documents: \{\{text\}\} is filled but"):
        templates.fill("no_documents", text=Literal("A"))
    with pytest.raises(TemplateError, match="sonnet: is no template"):
        templates.fill("sonnet")


def test_a_slot_may_stand_twice_and_take_several_parts(folder):
    (folder / "verifier.md").write_text("{{gold}}:{{question}}{{answer}}{{gold}}\n")
    filled = Templates.load(folder).fill("verifier", question=Quoted("q"), answer=[], gold=[Literal("x"), Quoted("g")])
    assert filled == (Literal("x"), Quoted("g"), Literal(":"), Quoted("q"), Literal("x"), Quoted("g"))


def test_literals_that_meet_are_tokenised_in_one_piece():
    ids = Tokens(np.arange(3, dtype=np.int32))
    assert merged([Literal("a"), Literal(""), Literal("b"), ids, Literal("")]) == (Literal("ab"), ids)


def test_joining_puts_the_separator_only_between():
    templates = Templates.load()
    separator = templates.fill("option_separator")
    assert templates.join("option_separator", [Quoted("a"), [Quoted("b")]]) == (Quoted("a"), *separator, Quoted("b"))
    assert templates.join("option_separator", []) == ()


def test_the_target_letter_stands_in_the_multiple_choice_templates_only():
    with_letter = {name for name, slots in TEMPLATE_SLOTS.items() if "target_letter" in slots}
    task = TaskName.MULTIPLE_CHOICE
    assert with_letter == {f"questioner_{task}", f"questioner_{task}_history"}
