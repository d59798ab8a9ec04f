from dataclasses import replace

import numpy as np
import pytest
from byte_tokenizer import numbered
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.data.cluster import plan_sets
from megatron_spell.data.documents import RawDocument
from megatron_spell.data.errors import BuildError
from megatron_spell.data.settings import BuildSettings

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
    elif len(planned) > 1 and len(sides["train"] | sides["heldout"]) == len(planned):
        assert sides["heldout"]


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
    purity = [
        max(titles.count(t) for t in titles) / len(titles)
        for p in planned
        if (titles := [d.title for d in p.documents])
    ]
    assert np.mean(purity) > 0.9


def test_a_remainder_joins_the_set_it_resembles():
    bread, stars = numbered(8, "bread", THEMES[1]), numbered(8, "stars", THEMES[2])
    planned = plan_sets([*bread, *stars, *numbered(2, "comets", THEMES[2])], replace(SETTINGS, heldout=0.5))
    joined = next(p for p in planned if any(d.group == "comets" for d in p.documents))
    assert {d.group for d in joined.documents} == {"stars", "comets"}


def test_the_plan_depends_on_the_seed_and_on_nothing_else():
    documents = themed(200)
    assert plan_sets(documents, SETTINGS) == plan_sets(iter(documents), SETTINGS)
    other = plan_sets(documents, replace(SETTINGS, seed=1))
    assert [p.split for p in other] != [p.split for p in plan_sets(documents, SETTINGS)]


def test_about_the_wanted_share_is_held_out():
    for share in (0.1, 0.25, 0.5):
        splits = [p.split for p in plan_sets(themed(400), replace(SETTINGS, heldout=share))]
        assert splits.count("heldout") == pytest.approx(share * len(splits), abs=1)


def test_more_sets_than_one_clustering_takes_are_parted_first():
    documents = themed(2400)
    planned = plan_sets(documents, replace(SETTINGS, set_size=4))
    assert len(planned) > 400
    assert all(2 <= len(p.documents) <= 8 for p in planned)


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
