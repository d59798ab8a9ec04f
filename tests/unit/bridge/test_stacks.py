import pytest
import torch

from megatron_spell.bridge.boxes import Box, BridgeError, Segment
from megatron_spell.bridge.stacks import local_names, member, members, restricted, runs, unstacked, values, views

NAME = "experts.*.w"


def stack_of(count: int = 4) -> dict[str, torch.Tensor]:
    whole = torch.arange(count * 6.0).view(count, 2, 3)
    return {member(NAME, i): each.clone() for i, each in enumerate(whole)} | {"whole": whole}


def test_members_have_the_box_without_the_index():
    box = Box((1, 0, 2), (3, 2, 3))
    assert list(members(NAME, box)) == [("experts.1.w", Box((0, 2), (2, 3))), ("experts.2.w", Box((0, 2), (2, 3)))]
    assert list(members("w", box)) == [("w", box)]


def test_a_stack_and_a_plain_tensor_show_the_same_values():
    tensors, box = stack_of(), Box((1, 0, 1), (3, 2, 3))
    assert torch.equal(values(tensors, NAME, box), values(tensors, "whole", box))
    apart = zip(views(tensors, NAME, box, apart=True), views(tensors, "whole", box, apart=True), strict=True)
    assert all(torch.equal(a, b) for a, b in apart)
    assert [view.shape for view in views(tensors, "whole", box, apart=False)] == [(2, 2, 2)]


def test_views_are_of_the_tensors_themselves_and_need_no_gradient():
    tensors = {"w": torch.nn.Parameter(torch.zeros(2, 3)), **stack_of()}
    for name, box in (("w", Box((0, 0), (1, 3))), (NAME, Box((0, 0, 0), (4, 2, 3)))):
        for view in views(tensors, name, box, apart=False):
            view.fill_(7.0)
    assert tensors["w"][0].tolist() == [7.0] * 3
    assert all((tensors[member(NAME, i)] == 7.0).all() for i in range(4))
    assert not (tensors["whole"] == 7.0).all()


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([], []),
        ([3], [(0, 3, 4)]),
        ([2, 3, 4], [(0, 2, 5)]),
        ([0, 2, 4], [(0, 0, 1), (1, 2, 3), (2, 4, 5)]),
        ([1, 2, 7, 8], [(0, 1, 3), (2, 7, 9)]),
        ([5, 4], [(0, 5, 6), (1, 4, 5)]),
    ],
)
def test_runs_count_up_by_one(indices, expected):
    assert list(runs(indices)) == expected


def test_a_segment_of_a_stack_is_one_for_each_tensor():
    segment = Segment("hf.*", Box((4, 0), (6, 3)), NAME, Box((0, 0), (2, 3)))
    one, two = unstacked((segment,))
    assert one == Segment("hf.4", Box((0,), (3,)), "experts.0.w", Box((0,), (3,)))
    assert two == Segment("hf.5", Box((0,), (3,)), "experts.1.w", Box((0,), (3,)))
    assert local_names((segment,)) == {"experts.0.w", "experts.1.w"}
    plain = Segment("hf", Box((0,), (3,)), "w", Box((0,), (3,)))
    assert unstacked((plain,)) == (plain,)


def test_a_stack_against_a_plain_tensor_cannot_be_unstacked():
    segment = Segment("hf.*", Box((4, 0), (6, 3)), "w13", Box((0, 0), (2, 3)))
    with pytest.raises(BridgeError, match=r"hf\.\* and w13: only one of them is a stack"):
        unstacked((segment,))


def test_an_inventory_is_restricted_to_names():
    box = Box((0, 0), (5, 3))
    whole = (Segment("hf.*", box, "hf.*", box), Segment("norm", Box((0,), (3,)), "norm", Box((0,), (3,))))
    found = restricted(whole, ["hf.1", "hf.2", "hf.4", "norm"])
    assert local_names(found) == {"hf.1", "hf.2", "hf.4", "norm"}
    assert [(s.hf_box.start[0], s.hf_box.stop[0]) for s in found] == [(1, 3), (4, 5), (0, 3)]
    assert all(s.hf_box == s.local_box for s in found)
    assert restricted(whole, ["other"]) == ()
