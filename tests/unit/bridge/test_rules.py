import pytest

from megatron_spell.bridge.boxes import Box, BridgeError, Segment
from megatron_spell.bridge.rules import (
    Cut,
    HfTensor,
    padded_vocab,
    qkv_groups,
    split_columns,
    split_rows,
    vocab_rows,
    whole,
)


def rows(segments) -> list[tuple[str, int, int, int]]:
    """(hf name, first hf row, past the last hf row, first local row)."""
    return [(s.hf_name, s.hf_box.start[0], s.hf_box.stop[0], s.local_box.start[0]) for s in segments]


def test_fused_projection_goes_group_by_group():
    hf = [HfTensor("q", (8, 3)), HfTensor("k", (4, 3)), HfTensor("v", (4, 3))]
    found = rows(qkv_groups("qkv", hf, Cut(0, 1, 2, 1)))
    assert found == [("q", 0, 4, 0), ("k", 0, 2, 4), ("v", 0, 2, 6), ("q", 4, 8, 8), ("k", 2, 4, 12), ("v", 2, 4, 14)]
    assert rows(qkv_groups("qkv", hf, Cut(1, 2, 2, 2))) == [
        ("q", 4, 8, 0),
        ("k", 2, 4, 4),
        ("v", 2, 4, 6),
    ]


def test_the_fused_projection_may_be_a_vector():
    hf = [HfTensor("q", (8,)), HfTensor("k", (4,)), HfTensor("v", (4,))]
    assert rows(qkv_groups("bias", hf, Cut(1, 2, 2, 2))) == [("q", 4, 8, 0), ("k", 2, 4, 4), ("v", 2, 4, 6)]


def test_rows_are_split_and_then_stacked():
    hf = [HfTensor("gate", (6, 2)), HfTensor("up", (6, 2))]
    assert rows(split_rows("fc1", hf, Cut(1, 3, 1, 3))) == [("gate", 2, 4, 0), ("up", 2, 4, 2)]


def test_columns_are_split():
    (found,) = split_columns("proj", [HfTensor("o", (3, 8))], Cut(1, 2, 1, 2))
    assert found == Segment("o", Box((0, 4), (3, 8)), "proj", Box((0, 0), (3, 4)))


def test_whole_is_on_every_rank():
    (found,) = whole("norm", [HfTensor("n", (5,))], Cut(3, 4, 1, 4))
    assert found == Segment("n", Box((0,), (5,)), "norm", Box((0,), (5,)))


@pytest.mark.parametrize(
    ("index", "expected"), [(0, [("e", 0, 2, 0)]), (1, [("e", 2, 4, 0)]), (2, [("e", 4, 5, 0)]), (3, [])]
)
def test_padding_rows_have_no_segment(index, expected):
    assert padded_vocab(5, 4) == 8
    assert padded_vocab(8, 4) == 8
    assert rows(vocab_rows("embedding", [HfTensor("e", (5, 2))], Cut(index, 4, 1, vocab_multiple=4))) == expected


@pytest.mark.parametrize(
    ("rule", "shapes", "message"),
    [
        (split_rows, [(5, 2)], "t0: dim 0 of \\(5, 2\\) does not divide over tp = 2"),
        (split_columns, [(2, 5)], "t0: dim 1 of \\(2, 5\\) does not divide over tp = 2"),
        (qkv_groups, [(6, 2), (3, 2), (3, 2)], "t1: 3 key-value heads do not divide over tp = 2"),
    ],
)
def test_a_cut_that_does_not_divide_is_refused(rule, shapes, message):
    hf = [HfTensor(f"t{i}", shape) for i, shape in enumerate(shapes)]
    with pytest.raises(BridgeError, match=message):
        list(rule("local", hf, Cut(0, 2, 1, 2)))
