"""The GPU's attention kernels against float32 and float64 on rows run by themselves: `pytest -m gpu tests/gpu`."""

import pytest
import torch

from megatron_spell.policy.attention_kernels import Blockwise, CpuFlash, CudaFlash, kernel_for
from tests.unit.policy.attention_lab import LONG, by_bin, by_kernel, by_rows, make_inputs, truth, with_gradients

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

GPU = torch.device("cuda")
KINDS = [(CudaFlash(), torch.bfloat16, 0.05), (CudaFlash(), torch.float16, 0.01), (Blockwise(), torch.float32, 2e-4)]


@pytest.fixture(autouse=True)
def whole_float32():
    """Matrix products in float32 proper, where a GPU may round their inputs to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("kernel, dtype, tolerance", KINDS)
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_output_and_gradients_equal_a_dense_mask(kernel, dtype, tolerance, num_ranks, kv_heads):
    inputs, grad = make_inputs(GPU, dtype, kv_heads)
    for found, wanted in zip(
        with_gradients(by_kernel(kernel, num_ranks), inputs, grad), truth(inputs, grad), strict=True
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.cpu().double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kernel, dtype, tolerance", KINDS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_bin_equals_its_rows_in_float32(kernel, dtype, tolerance, head_dim):
    """By the norm of the difference: single elements near zero say little in 16 bits."""
    inputs, grad = make_inputs(GPU, dtype, num_tokens=LONG[-1][-1], head_dim=head_dim)
    singles = [x.detach().float().requires_grad_() for x in inputs]
    found = with_gradients(by_bin(kernel, LONG), inputs, grad)
    for one, wanted in zip(found, with_gradients(by_rows, singles, grad.float()), strict=True):
        assert (one.float() - wanted).norm() < tolerance / 4 * wanted.norm()


def test_single_queries_of_grouped_heads_keep_their_order():
    """Every response of one token, each with a prompt of its own: kernels for decoding look at such calls."""
    segments = tuple(s for n in range(12) for s in ((5 * n, 5 * n + 4) * 2, (5 * n, 5 * n + 4, 5 * n + 4, 5 * n + 5)))
    inputs, grad = make_inputs(GPU, torch.bfloat16, kv_heads=1, num_tokens=60)
    exact = [x.detach().cpu().float().requires_grad_() for x in inputs]
    wanted = with_gradients(by_bin(CpuFlash(), segments), exact, grad.cpu().float())
    for found, truly in zip(with_gradients(by_bin(CudaFlash(), segments), inputs, grad), wanted, strict=True):
        torch.testing.assert_close(found.cpu().float(), truly, atol=0.05, rtol=0.05)


def test_responses_without_their_prompt_would_be_seen():
    """Planted: every segment sees itself alone."""
    inputs, grad = make_inputs(GPU, torch.bfloat16, num_tokens=LONG[-1][-1])
    alone = tuple((start, stop, start, stop) for _, _, start, stop in LONG)
    out, wanted = with_gradients(by_bin(CudaFlash(), alone), inputs, grad)[0], by_rows(*inputs)
    assert (out.float() - wanted.float()).norm() > 0.1 * wanted.float().norm()


def test_memory_grows_with_the_tokens_and_not_with_their_square():
    """A prompt of 32K tokens: its scores would take 8 GiB a head."""
    num_tokens = 33_280
    inputs, grad = make_inputs(GPU, torch.bfloat16, num_tokens=num_tokens)
    segments = ((0, 32_768, 0, 32_768), (0, 32_768, 32_768, num_tokens))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with_gradients(by_bin(kernel_for(GPU, torch.bfloat16, inputs[0].shape[-1]), segments), inputs, grad)
    assert torch.cuda.max_memory_allocated() - before < 20 * sum(x.nbytes for x in inputs)
