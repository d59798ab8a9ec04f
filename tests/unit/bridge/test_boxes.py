import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_spell.bridge.boxes import Box, BridgeError, Segment


@st.composite
def boxes(draw, dims: int):
    start = tuple(draw(st.integers(0, 4)) for _ in range(dims))
    return Box(start, tuple(a + draw(st.integers(1, 4)) for a in start))


def cells(box: Box) -> set[tuple[int, ...]]:
    found: set[tuple[int, ...]] = {()}
    for a, b in zip(box.start, box.stop):
        found = {(*cell, i) for cell in found for i in range(a, b)}
    return found


@given(st.integers(1, 3).flatmap(lambda dims: st.tuples(boxes(dims), boxes(dims))))
def test_boxes_behave_like_sets_of_cells(pair):
    a, b = pair
    common = a.intersect(b)
    assert (cells(common) if common else set()) == cells(a) & cells(b)
    assert a.contains(b) == (cells(b) <= cells(a))
    rest = [cells(part) for part in a.minus(b)]
    assert sum(map(len, rest)) == len(set().union(*rest)), "the parts overlap"
    assert set().union(*rest) == cells(a) - cells(b)
    assert a.num_elements == len(cells(a))


def test_moved_changes_coordinates():
    assert Box((3, 1), (5, 2)).moved(origin=(3, 0), to=(0, 7)) == Box((0, 8), (2, 9))
    assert Segment("q", Box((4,), (8,)), "qkv", Box((0,), (4,))).to_local(Box((5,), (6,))) == Box((1,), (2,))


def test_text_and_index_of_a_box():
    box = Box((0, 2), (4, 3))
    assert str(box) == "[0:4, 2:3]"
    assert box.index == (slice(0, 4), slice(2, 3))


@pytest.mark.parametrize(("start", "stop"), [((0,), (0,)), ((2,), (1,)), ((-1,), (1,)), ((0,), (1, 1))])
def test_an_impossible_box_is_refused(start, stop):
    with pytest.raises(BridgeError, match="do not bound a box"):
        Box(start, stop)


def test_a_segment_keeps_its_shape():
    with pytest.raises(BridgeError, match=r"q\[0:2\] does not fit into qkv\[0:3\]"):
        Segment("q", Box((0,), (2,)), "qkv", Box((0,), (3,)))
