"""Log-probs and entropies of chosen labels against torch's own, whole and in chunks."""

import pytest
import torch
import torch.distributed as dist

from megatron_spell.policy.log_probs import score_tokens

NUM_TOKENS, HIDDEN, VOCAB = 23, 16, 50


@pytest.fixture
def case(alone):
    torch.manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, requires_grad=True)
    return hidden, weight, torch.randint(0, VOCAB, (NUM_TOKENS,))


def score(case, temperature=0.7, chunk=1000, head=None):
    hidden, weight, labels = case
    return score_tokens(
        hidden,
        labels,
        head or (lambda x: x @ weight.t()),
        temperature=temperature,
        first_label=0,
        group=dist.group.WORLD,
        chunk=chunk,
    )


def expected_log_probs(case, temperature):
    hidden, weight, labels = case
    return torch.log_softmax(hidden @ weight.t() / temperature, -1).gather(-1, labels[:, None])[:, 0]


@pytest.mark.parametrize("chunk", [1, 7, 23, 1000])
def test_scores_and_gradients_equal_log_softmax(case, chunk):
    found = score(case, chunk=chunk)
    wanted = expected_log_probs(case, 0.7)
    torch.testing.assert_close(found.log_probs_A, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.raw_log_probs_A, expected_log_probs(case, 1.0), atol=1e-5, rtol=0)
    factors = torch.randn(NUM_TOKENS)
    for mine, theirs in zip(
        torch.autograd.grad((found.log_probs_A * factors).sum(), case[:2]),
        torch.autograd.grad((wanted * factors).sum(), case[:2]),
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)


def test_only_the_loss_log_probs_carry_a_gradient(case):
    found = score(case)
    assert found.log_probs_A.requires_grad
    assert not found.raw_log_probs_A.requires_grad
    assert not found.entropy_A.requires_grad


def test_entropy_is_that_of_the_raw_distribution(case):
    hidden, weight, _ = case
    wanted = torch.distributions.Categorical(logits=hidden @ weight.t()).entropy()
    torch.testing.assert_close(score(case).entropy_A, wanted, atol=1e-5, rtol=0)


def test_columns_that_pad_the_vocabulary_take_no_probability(case):
    weight = case[1]
    padded = score(case, head=lambda x: torch.nn.functional.pad(x @ weight.t(), (0, 6), value=-torch.inf))
    for found, wanted in zip(padded, score(case)):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert torch.isfinite(torch.autograd.grad(padded.log_probs_A.sum(), weight)[0]).all()


def test_chunks_of_logits_are_computed_again_instead_of_kept(case):
    sizes = []

    def head(x):
        sizes.append(x.shape[0])
        return x @ case[1].t()

    found = score(case, chunk=5, head=head)
    assert sizes == [5, 5, 5, 5, 3]
    found.log_probs_A.sum().backward()
    assert sorted(sizes[5:]) == [3, 5, 5, 5, 5]
