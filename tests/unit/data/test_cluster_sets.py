from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.data.cluster import heldout_groups, plan_sets
from megatron_spell.data.documents import RawDocument
from megatron_spell.data.errors import BuildError
from megatron_spell.data.related import Packing
from megatron_spell.data.settings import BuildSettings
from tests.unit.data.byte_tokenizer import numbered

SETTINGS = BuildSettings(set_size=8, min_chars=1, heldout=0.25)
THEMES = (
    "sails masts harbour anchor",
    "flour yeast oven crust",
    "orbit comet telescope lens",
    "tax budget audit ledger",
)


def grouped(sizes):
    return [d for n, size in enumerate(sizes) for d in numbered(size, f"g{n}", THEMES[n % len(THEMES)])]


def themed(num, seed=0):
    """Documents that each are a group, in mixed order; the title tells the theme."""
    rng = np.random.default_rng(seed)
    return [
        RawDocument(f"d{n}", theme, f"{' '.join(rng.permutation(theme.split() * 3))} {n}", f"d{n}")
        for n, theme in enumerate(THEMES[i] for i in rng.integers(len(THEMES), size=num))
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=25),
    st.integers(2, 12),
    st.sampled_from([0.0, 0.15, 0.5, 0.9]),
    st.integers(0, 2**32 - 1),
)
def test_every_document_stands_in_one_set_of_allowed_size_and_no_group_on_both_sides(sizes, set_size, heldout, seed):
    documents = grouped(sizes)
    if 2 * len(documents) < set_size:
        return
    planned = plan_sets(documents, BuildSettings(set_size, None, 1, heldout, seed))
    assert sorted(d.doc_id for p in planned for d in p.documents) == sorted(d.doc_id for d in documents)
    assert all(set_size / 2 <= len(p.documents) <= 2 * set_size for p in planned)
    assert len({p.set_id for p in planned}) == len(planned)
    sides = {
        split: {d.group for p in planned if p.split == split for d in p.documents} for split in ("train", "heldout")
    }
    assert not sides["train"] & sides["heldout"]
    assert sides["train"]
    if heldout == 0:
        assert not sides["heldout"]


def test_a_long_group_becomes_sets_of_consecutive_documents():
    planned = plan_sets(numbered(20, "long"), replace(SETTINGS, heldout=0))
    assert [[d.doc_id for d in p.documents] for p in planned] == [
        [f"long/{n}" for n in range(10)],
        [f"long/{n}" for n in range(10, 20)],
    ]


def test_small_groups_stay_whole():
    planned = plan_sets(grouped([5, 3, 6, 2, 7, 4, 5, 5]), SETTINGS)
    at = {}
    for p in planned:
        for d in p.documents:
            assert at.setdefault(d.group, p.set_id) == p.set_id


def test_related_documents_come_together():
    planned = plan_sets(themed(160), SETTINGS)
    titles = [[d.title for d in p.documents] for p in planned]
    purity = [max(map(names.count, names)) / len(names) for names in titles]
    assert np.mean(purity) > 0.9


def test_a_remainder_joins_the_set_it_resembles():
    bread, stars = numbered(8, "bread", THEMES[1]), numbered(8, "stars", THEMES[2])
    planned = plan_sets([*bread, *stars, *numbered(2, "comets", THEMES[2])], replace(SETTINGS, heldout=0))
    assert [{d.group for d in p.documents} for p in planned] == [{"bread"}, {"stars", "comets"}]


def test_the_plan_depends_on_the_seed_and_on_nothing_else():
    documents = themed(200)
    assert plan_sets(documents, SETTINGS) == plan_sets(iter(documents), SETTINGS)
    other = plan_sets(documents, replace(SETTINGS, seed=1))
    assert [p.split for p in other] != [p.split for p in plan_sets(documents, SETTINGS)]


def test_about_the_wanted_share_is_held_out():
    for share in (0.1, 0.25, 0.5):
        planned = plan_sets(themed(400), replace(SETTINGS, heldout=share))
        assert sum(len(p.documents) for p in planned if p.split == "heldout") == round(share * 400)


def test_new_documents_leave_the_others_on_their_side():
    def held(documents):
        return {d.group for p in plan_sets(documents, SETTINGS) if p.split == "heldout" for d in p.documents}

    sizes = [1 + n % 6 for n in range(80)]
    before, after = held(grouped(sizes)), held([*numbered(5, "new"), *grouped(sizes)])
    assert len(before) > 15
    assert len((before ^ after) - {"new"}) <= 2


def test_a_small_share_still_gives_a_set_where_there_are_two():
    for sizes in ([1] * 16, [8, 8], [20, 4], [4, 20]):
        planned = plan_sets(grouped(sizes), replace(SETTINGS, heldout=0.01))
        assert {p.split for p in planned} == {"train", "heldout"}
    assert {p.split for p in plan_sets(grouped([20, 3]), SETTINGS)} == {"train"}


def test_many_documents_are_parted_in_several_rounds():
    documents = themed(2400)
    planned = plan_sets(documents, replace(SETTINGS, set_size=4))
    assert len(planned) > 300
    assert all(2 <= len(p.documents) <= 8 for p in planned)


def test_light_bins_join_each_other_before_they_overfill_the_nearest():
    weights = np.array([3, 3, 2, 12, 12])  # the light ones all lie nearest to the first heavy one
    vectors = np.array([[9, 3, 0], [9, -3, 0], [9, 0, 3], [9, 0, 0], [0, 0, 9]]) / 9
    bins = Packing(vectors, weights, size=8, seed=0).join_light([[0], [1], [2], [3], [4]])
    assert sorted(weights[b].sum() for b in bins) == [8, 12, 12]


def test_what_is_held_out_depends_on_the_seed_and_not_on_the_order():
    sizes = {f"g{n}": 4 for n in range(40)}
    held = heldout_groups(sizes, SETTINGS)
    assert len(held) == 10
    assert heldout_groups(dict(reversed(sizes.items())), SETTINGS) == held
    assert heldout_groups(sizes, replace(SETTINGS, seed=1)) != held


def test_documents_that_hardly_differ_are_parted_all_the_same():
    documents = [RawDocument(f"d{n}", "", "same words " * 5 + "." * n, f"d{n}") for n in range(64)]
    assert all(4 <= len(p.documents) <= 16 for p in plan_sets(documents, SETTINGS))


def test_documents_without_any_word_can_be_grouped():
    documents = [RawDocument(f"d{n}", "", "{}" * 10 + "!" * n, f"d{n}") for n in range(12)]
    assert sum(len(p.documents) for p in plan_sets(documents, SETTINGS)) == 12


def test_too_few_documents_are_refused_with_the_way_out():
    with pytest.raises(BuildError, match=r"set_size = 8: the sources give 3 documents and a set needs at least 4; add"):
        plan_sets(numbered(3, "g"), SETTINGS)


@pytest.mark.parametrize(
    ("field", "value"),
    [("set_size", 1), ("heldout", 1.0), ("heldout", -0.1), ("heldout", float("nan")), ("seed", -1), ("max_chars", 5)],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(BuildError, match=f"{field} = {value} must"):
        BuildSettings(**{"min_chars": 10, field: value})
