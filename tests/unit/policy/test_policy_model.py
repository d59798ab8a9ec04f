"""The imported model says what Hugging Face's says; planted faults show."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_spell.policy.model import IndexedRotary
from megatron_spell.types.batches import PackedBatch
from tests.distributed.policy_lab import Reference, make_batch, make_policy, make_rows


def expected(reference: Reference) -> list[np.ndarray]:
    with torch.no_grad():
        return [reference.log_probs(row).numpy() for row in make_rows(0)]


def largest_difference(found, wanted) -> float:
    return max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True))


def loaded(folder):
    policy = make_policy(folder)
    policy.load_hf(folder)
    return policy


def changed(batch: PackedBatch, **change) -> PackedBatch:
    """Every bin with fields replaced by functions of the bin."""
    return replace(
        batch,
        bins_D_B=tuple(
            tuple(replace(b, **{name: make(b) for name, make in change.items()}) for b in bins)
            for bins in batch.bins_D_B
        ),
    )


@pytest.mark.parametrize("tied", [False, True])
def test_log_probs_equal_hugging_face(alone, models, tied):
    found = loaded(models[tied]).log_probs(make_batch(make_rows(0)))
    assert largest_difference(found, expected(Reference(models[tied]))) < 1e-4


def test_bins_do_not_change_what_is_said(alone, model):
    policy = loaded(model)
    one_bin, many_bins = (policy.log_probs(make_batch(make_rows(0), max_bin_tokens=n)) for n in (1000, 40))
    assert largest_difference(one_bin, many_bins) < 1e-5


def test_a_wrong_position_would_be_seen(alone, model, reference):
    """Planted: responses continue one position too far from their prompt."""
    shifted = changed(
        make_batch(make_rows(0)),
        position_ids_T=lambda b: b.position_ids_T + np.isin(np.arange(b.num_tokens), response_tokens(b)),
    )
    assert largest_difference(loaded(model).log_probs(shifted), expected(reference)) > 1e-2


def test_missing_prompt_keys_would_be_seen(alone, model, reference):
    """Planted: responses attend to themselves only."""
    blind = changed(make_batch(make_rows(0)), segments_S_4=lambda b: b.segments_S_4[:, [2, 3, 2, 3]])
    assert largest_difference(loaded(model).log_probs(blind), expected(reference)) > 1e-2


def response_tokens(packed) -> np.ndarray:
    spans = [np.arange(start, stop) for first, _, start, stop in packed.segments_S_4 if start != first]
    return np.concatenate([*spans, np.zeros(0, int)]).astype(int)


def test_rotary_angles_stay_exact_when_the_model_is_cast():
    rotary = IndexedRotary(1e6 ** -(torch.arange(0, 32, 2) / 32)).bfloat16()
    rotary.place(torch.tensor([[0, 1, 1001, 30000]]))
    angles = rotary()
    assert angles.shape == (4, 1, 1, 32)
    np.testing.assert_allclose(angles[:, 0, 0, 0], [0, 1, 1001, 30000])
    torch.testing.assert_close(angles[..., :16], angles[..., 16:], atol=0, rtol=0)
