"""Imports point down the floors only, and heavy libraries are met in one room each."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "megatron_spell"

FLOORS = {
    **dict.fromkeys(("types", "config", "layout"), 0),
    **dict.fromkeys(("observe", "text", "data", "roles", "rewards", "algo", "bridge", "cluster"), 1),
    "curriculum": 2,
    **dict.fromkeys(("policy", "rollout"), 3),
    "selfplay": 4,
    "evaluation": 5,
    "train": 6,
    "cli": 7,
}
# Rooms of one floor do not know each other, except on the ground floor, whose rooms build on one another in this order.
GROUND = ("types", "layout", "config")
HOME = {
    "megatron": {"policy"},
    "vllm": {"rollout"},
    "ray": {"cluster"},
    "h5py": {"data"},
    "torch": {"policy", "rollout", "bridge", "algo", "train"},
    "transformers": {"text"},
    "sentence_transformers": {"text"},
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imported(path: Path) -> Iterator[str]:
    """Every module imported anywhere in a file, inside functions and type-checking blocks too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(room: str, other: str) -> bool:
    if room == other:
        return True
    if room in GROUND and other in GROUND:
        return GROUND.index(other) < GROUND.index(room)
    return FLOORS[other] < FLOORS[room]


def test_every_room_has_a_floor():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "megatron_spell" and rest and rest[0] in FLOORS and room:
            assert allowed(room, rest[0]), f"{room} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_home(path):
    for name in imported(path):
        top = name.split(".")[0]
        assert room_of(path) in HOME.get(top, {room_of(path)}), f"{path} imports {name}"


def test_the_rule_bites():
    assert not allowed("rollout", "policy")
    assert not allowed("types", "config")
    assert not allowed("rewards", "roles")
    assert not allowed("curriculum", "selfplay")
    assert allowed("selfplay", "rollout")
