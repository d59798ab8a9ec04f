from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.algo.errors import AlgoError
from megatron_spell.algo.packing import NO_ROW, lengthened, pack
from megatron_spell.types.batches import ROLE_INDEX, Bin, PackedBatch
from megatron_spell.types.play import ExpertChoices, Role
from tests.unit.algo.made_rows import make_row


@st.composite
def made_rows(draw):
    """Families with distinct content: prompts of equal length may be equal, responses may be empty, but not all."""
    rows, group = [], 0
    for _ in range(draw(st.integers(1, 6))):
        prompt = draw(st.lists(st.integers(1, 3), min_size=1, max_size=12))
        role = draw(st.sampled_from(list(Role)))
        for _ in range(draw(st.integers(1, 5))):
            response = draw(st.lists(st.integers(4, 9), min_size=not rows, max_size=10))
            log_probs = -np.arange(1, len(response) + 1) / 8
            row = make_row(
                prompt, response, role=role, group=group, advantage=float(len(rows)) - 2, log_probs=log_probs
            )
            rows.append(row)
            group += role is Role.QUESTIONER
        group += 1
    return rows


def all_bins(batch: PackedBatch) -> list[Bin]:
    return [packed for bins_B in batch.bins_D_B for packed in bins_B]


def context_of(packed: Bin, predictor: int) -> tuple[np.ndarray, np.ndarray]:
    """Token and position ids that the segment table lets `predictor` attend to, in order."""
    ((prompt_start, prompt_stop, start, _),) = (
        segment for segment in packed.segments_S_4 if segment[2] <= predictor < segment[3]
    )
    own = np.arange(start, predictor + 1)
    seen = own if start == prompt_start else np.concatenate((np.arange(prompt_start, prompt_stop), own))
    return packed.token_ids_T[seen], packed.position_ids_T[seen]


def trained_pairs(batch: PackedBatch) -> dict[int, list[tuple]]:
    """By row: (context, positions, label, advantage, weight, engine log-prob, role) of its trained tokens in order."""
    pairs: dict[int, list[tuple]] = {}
    for packed in all_bins(batch):
        for i, predictor in enumerate(packed.predictors_A):
            context, positions = context_of(packed, predictor)
            pairs.setdefault(int(packed.row_A[i]), []).append(
                (
                    context,
                    positions,
                    packed.labels_A[i],
                    packed.advantages_A[i],
                    packed.weights_A[i],
                    packed.engine_log_probs_A[i],
                    packed.role_A[i],
                )
            )
    return pairs


@settings(deadline=None, max_examples=150)
@given(made_rows(), st.integers(1, 4), st.integers(8, 60), st.sampled_from([1, 4, 8]))
def test_every_response_token_is_trained_once_in_its_own_context(rows, num_dp, max_bin_tokens, pad_multiple):
    weights = np.arange(1, len(rows) + 1) / 7
    batch = pack(rows, weights, num_dp=num_dp, max_bin_tokens=max_bin_tokens, pad_multiple=pad_multiple)
    pairs = trained_pairs(batch)
    assert set(pairs) - {NO_ROW} == {index for index, row in enumerate(rows) if row.response_ids_A.size}
    for index, row in enumerate(rows):
        if not row.response_ids_A.size:
            continue
        assert len(pairs[index]) == row.response_ids_A.size
        whole = np.concatenate((row.prompt_ids_T, row.response_ids_A))
        for i, (context, positions, label, advantage, weight, log_prob, role) in enumerate(pairs[index]):
            np.testing.assert_array_equal(context, whole[: row.prompt_ids_T.size + i])
            np.testing.assert_array_equal(positions, np.arange(context.size))
            assert label == row.response_ids_A[i]
            assert (advantage, weight, role) == (row.advantage, weights[index], ROLE_INDEX[row.role])
            assert log_prob == np.float32(row.engine_log_probs_A[i])


@settings(deadline=None, max_examples=100)
@given(made_rows(), st.integers(1, 4), st.integers(8, 60), st.sampled_from([1, 4, 8]))
def test_bins_are_tiled_padded_and_within_their_limit(rows, num_dp, max_bin_tokens, pad_multiple):
    weights = np.ones(len(rows))
    batch = pack(rows, weights, num_dp=num_dp, max_bin_tokens=max_bin_tokens, pad_multiple=pad_multiple)
    sizes = [row.prompt_ids_T.size + row.response_ids_A.size - 1 for row in rows if row.response_ids_A.size]
    longest = max(sizes)
    assert len({len(bins_B) for bins_B in batch.bins_D_B}) == 1 and len(batch.bins_D_B) == num_dp
    for packed in all_bins(batch):
        assert packed.num_tokens % pad_multiple == 0
        spans = packed.segments_S_4[:, 2:]
        assert spans[0, 0] == 0 and spans[-1, 1] == packed.num_tokens
        np.testing.assert_array_equal(spans[1:, 0], spans[:-1, 1])
        assert (spans[:, 0] < spans[:, 1]).all()
        if packed.num_tokens > max_bin_tokens:  # only for a row that is too long by itself
            assert longest > max_bin_tokens - max_bin_tokens % pad_multiple
            assert len(set(packed.row_A.tolist())) == 1 or packed.num_tokens - pad_multiple < longest
    assert batch.num_rows == len(rows)
    assert batch.num_row_tokens == sum(sizes)


def test_a_prompt_stands_once_for_its_responses():
    rows = [make_row([1, 2, 3], [7, 8]), make_row([1, 2, 3], [9]), make_row([1, 2, 3], [5, 6, 4], group=1)]
    ((packed,),) = pack(rows, np.ones(3), num_dp=1, max_bin_tokens=100).bins_D_B
    assert packed.token_ids_T.tolist() == [1, 2, 3, 7, 5, 6]
    assert packed.position_ids_T.tolist() == [0, 1, 2, 3, 3, 4]
    assert packed.segments_S_4.tolist() == [[0, 3, 0, 3], [0, 3, 3, 4], [0, 3, 4, 6]]
    assert packed.predictors_A.tolist() == [2, 3, 2, 2, 4, 5]
    assert packed.labels_A.tolist() == [7, 8, 9, 5, 6, 4]
    assert packed.row_A.tolist() == [0, 0, 1, 2, 2, 2]


def test_an_empty_response_stands_for_nothing():
    """Not even between two responses of its prompt, nor by a prompt that is its alone."""
    rows = [make_row([1, 2], [7, 8]), make_row([1, 2], []), make_row([1, 2], [9, 6]), make_row([4, 4], [], group=1)]
    batch = pack(rows, np.ones(4), num_dp=1, max_bin_tokens=100)
    ((packed,),) = batch.bins_D_B
    assert packed.token_ids_T.tolist() == [1, 2, 7, 9]
    assert packed.row_A.tolist() == [0, 0, 2, 2]
    assert (batch.num_rows, batch.num_row_tokens) == (4, 6)


def test_without_sharing_every_row_brings_its_prompt():
    rows = [make_row([1, 2, 3], [7, 8]), make_row([1, 2, 3], [9])]
    ((packed,),) = pack(rows, np.ones(2), num_dp=1, max_bin_tokens=100, share_prompts=False).bins_D_B
    assert packed.token_ids_T.tolist() == [1, 2, 3, 7, 1, 2, 3]


def test_sharing_follows_the_prompt_and_not_the_group():
    rows = [make_row([1, 2], [7, 8], group=5), make_row([1, 3], [7, 8], group=5)]
    ((packed,),) = pack(rows, np.ones(2), num_dp=1, max_bin_tokens=100).bins_D_B
    assert packed.token_ids_T.tolist() == [1, 2, 7, 1, 3, 7]
    assert packed.segments_S_4.tolist() == [[0, 2, 0, 2], [0, 2, 2, 3], [3, 5, 3, 5], [3, 5, 5, 6]]


def test_a_family_that_does_not_fit_is_split_with_its_prompt_repeated():
    rows = [make_row([1] * 6, [7, 8, 9])] * 4
    batch = pack(rows, np.ones(4), num_dp=1, max_bin_tokens=10)
    assert [packed.num_tokens for packed in all_bins(batch)] == [10, 10]
    assert [packed.row_A.tolist() for packed in all_bins(batch)] == [[0] * 3 + [1] * 3, [2] * 3 + [3] * 3]


def test_a_row_longer_than_a_bin_gets_its_own():
    rows = [make_row([1] * 30, [7, 8, 9]), make_row([1] * 30, [7, 8]), make_row([2], [3, 4])]
    batch = pack(rows, np.ones(3), num_dp=1, max_bin_tokens=10)
    assert sorted(packed.num_tokens for packed in all_bins(batch)) == [2, 31, 32]


def test_padding_is_a_segment_that_sees_only_itself():
    ((packed,),) = pack(
        [make_row([1, 2, 3], [4, 5, 6])], np.ones(1), num_dp=1, max_bin_tokens=64, pad_multiple=8
    ).bins_D_B
    assert packed.token_ids_T.tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert packed.position_ids_T.tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    assert packed.segments_S_4.tolist()[-1] == [5, 8, 5, 8]


def test_padding_stays_within_the_limit():
    rows = [make_row([n], [n] * 6) for n in range(1, 9)]
    for packed in all_bins(pack(rows, np.ones(8), num_dp=1, max_bin_tokens=21, pad_multiple=8)):
        assert packed.num_tokens == 16


def test_ranks_without_work_get_fillers_that_weigh_nothing():
    batch = pack([make_row([1, 2], [3, 4])], np.ones(1), num_dp=3, max_bin_tokens=16, pad_multiple=2)
    fillers = [packed for packed in all_bins(batch) if packed.row_A[0] == NO_ROW]
    assert len(fillers) == 2
    for filler in fillers:
        assert filler.token_ids_T.tolist() == [0, 0]
        assert filler.segments_S_4.tolist() == [[0, 1, 0, 1], [1, 2, 1, 2]]
        assert (filler.predictors_A.tolist(), filler.labels_A.tolist()) == ([0], [0])
        assert (filler.weights_A.tolist(), filler.advantages_A.tolist()) == ([0.0], [0.0])


def test_work_is_spread_over_the_bins_the_ranks_run_anyway():
    rows = [make_row([n] * 10, [n]) for n in range(8)]
    batch = pack(rows, np.ones(8), num_dp=4, max_bin_tokens=50)
    assert [packed.num_tokens for packed in all_bins(batch)] == [20] * 4


def test_spreading_gives_way_to_first_fit_when_the_bins_do_not_suffice():
    lengths = [6, 5, 5, 4, 4, 3, 3]  # 3 bins of 10 by first fit; the evenest spread over three has no room for a 3
    rows = [make_row([n + 1] * length, [9]) for n, length in enumerate(lengths)]
    batch = pack(rows, np.ones(7), num_dp=1, max_bin_tokens=10)
    assert sorted(packed.num_tokens for packed in all_bins(batch)) == [10, 10, 10]


def test_attention_counts_in_the_balance():
    """One long prompt costs more than many short ones of the same total, so it is left alone on its rank."""
    rows = [make_row([1] * 400, [9]), *(make_row([n] * 50, [9]) for n in range(2, 14))]
    batch = pack(rows, np.ones(13), num_dp=2, max_bin_tokens=2000, attention_tokens=10)
    first, second = ({row for packed in bins_B for row in packed.row_A.tolist()} for bins_B in batch.bins_D_B)
    assert {0} in (first, second)
    flat = pack(rows, np.ones(13), num_dp=2, max_bin_tokens=2000, attention_tokens=10**9)
    assert [sum(packed.num_tokens for packed in bins_B) for bins_B in flat.bins_D_B] == [500, 500]


def test_the_costliest_bin_of_every_rank_comes_first():
    rows = [make_row([n] * (10 + n), [9]) for n in range(1, 9)]
    for bins_B in pack(rows, np.ones(8), num_dp=2, max_bin_tokens=20).bins_D_B:
        sizes = [packed.num_tokens for packed in bins_B]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) == 4


def test_the_costliest_bin_comes_first_however_it_was_filled():
    rows = [make_row([n] * size, [9]) for n, size in ((1, 9), (2, 5), (3, 5))]
    assert [packed.num_tokens for packed in all_bins(pack(rows, np.ones(3), num_dp=1, max_bin_tokens=10))] == [10, 9]


def test_large_parts_are_placed_before_small_ones():
    rows = [make_row([n] * size, [9]) for n, size in ((1, 4), (2, 4), (3, 6), (4, 6))]
    batch = pack(rows, np.ones(4), num_dp=1, max_bin_tokens=10)
    assert [packed.num_tokens for packed in all_bins(batch)] == [10, 10]


def test_a_row_that_is_too_long_does_not_keep_the_others_from_being_spread():
    rows = [make_row([n] * size, [9]) for n, size in ((1, 30), (2, 5), (3, 5))]
    batch = pack(rows, np.ones(3), num_dp=3, max_bin_tokens=10)
    assert sorted(packed.num_tokens for packed in all_bins(batch)) == [5, 5, 30]


def test_expert_choices_stand_where_their_tokens_do():
    rows = [with_choices(make_row([1, 2, 3], [4, 5], group=0), 10), with_choices(make_row([1, 2, 3], [6], group=0), 50)]
    rows.append(make_row([7, 8], [9, 9], group=1))
    [[packed]] = pack(rows, np.ones(3), num_dp=1, max_bin_tokens=64, pad_multiple=8).bins_D_B
    of_first_row, none = [10, 11, 12, 13], [-1] * 4  # the prompt's are the first row's; [6] is never run
    assert packed.token_ids_T.tolist() == [1, 2, 3, 4, 7, 8, 9, 0]
    assert packed.experts_T_L_K.shape == (8, 2, 1) and packed.experts_T_L_K.dtype == np.int16
    for layer in range(2):
        assert packed.experts_T_L_K[:, layer, 0].tolist() == [*(100 * layer + n for n in of_first_row), *none]
    assert lengthened(packed, 10).experts_T_L_K[:, 0, 0].tolist() == [*of_first_row, *none, -1, -1]


def test_rows_without_expert_choices_make_bins_without():
    [[packed]] = pack([make_row([1], [2, 3])], np.ones(1), num_dp=1, max_bin_tokens=8).bins_D_B
    assert packed.experts_T_L_K is None and lengthened(packed, 8).experts_T_L_K is None


def with_choices(row, first: int):
    """Token n of the row goes to expert first + n, in layer 1 to a hundred more."""
    size = row.prompt_ids_T.size
    chosen_T = np.arange(first, first + size + row.response_ids_A.size - 1)
    chosen_T_L_K = np.stack([chosen_T, chosen_T + 100], 1)[:, :, None].astype(np.uint8)
    return replace(row, experts=ExpertChoices(chosen_T_L_K[:size], chosen_T_L_K[size:]))


def test_packing_the_same_rows_gives_the_same_bins():
    rng = np.random.default_rng(0)
    rows = [make_row(rng.integers(1, 9, size=rng.integers(1, 40)), rng.integers(1, 9, size=5)) for _ in range(50)]
    first, second = (pack(rows, np.ones(50), num_dp=3, max_bin_tokens=64) for _ in range(2))
    for a, b in zip(all_bins(first), all_bins(second), strict=True):
        np.testing.assert_array_equal(a.token_ids_T, b.token_ids_T)
        np.testing.assert_array_equal(a.row_A, b.row_A)


BAD_CALLS = [
    ({"rows": []}, "0 rows hold no response token"),
    ({"rows": [make_row([1], []), make_row([2], [])]}, "2 rows hold no response token"),
    ({"weights": np.ones(2)}, "2 weights for 1 rows"),
    ({"num_dp": 0}, "num_dp = 0"),
    ({"pad_multiple": 0}, "pad_multiple = 0"),
    ({"max_bin_tokens": 4, "pad_multiple": 8}, "max_bin_tokens = 4 is below pad_multiple = 8"),
    ({"rows": [make_row([], [1])]}, "row 0 .* empty prompt"),
    ({"rows": [make_row([1], [1, 2], log_probs=[-1.0])]}, "another number of log-probs"),
    (
        {"rows": [replace(make_row([1], [1, 2]), experts=ExpertChoices(np.zeros((1, 1, 1)), np.zeros((2, 1, 1))))]},
        "row 0 .* expert choices of another number of tokens",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_CALLS)
def test_what_cannot_be_packed_is_refused(change, message):
    call = {"rows": [make_row([1], [2])], "weights": np.ones(1), "num_dp": 1, "max_bin_tokens": 8} | change
    with pytest.raises(AlgoError, match=message):
        pack(call.pop("rows"), call.pop("weights"), **call)
