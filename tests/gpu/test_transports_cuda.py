"""Transports between processes on GPUs: `pytest -m gpu tests/gpu/test_transports_cuda.py`.

CUDA IPC needs one GPU that two processes may use (compute mode "default"), NCCL two.
"""

from pathlib import Path

import pytest
import torch

from megatron_spell.bridge.transports.base import TransportError
from megatron_spell.bridge.transports.ipc import CudaMemory, cuda_device, device_uuid
from tests.distributed.processes import run_ranks

RANK = Path(__file__).with_name("transport_cuda_rank.py")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@pytest.mark.parametrize("kind", ["auto", "cuda_ipc"])
def test_one_gpu_every_bit_arrives_and_memory_is_given_back(kind):
    run_ranks(RANK, 2, "stream", kind, "same", timeout_s=300)


def test_without_fences_the_bytes_are_wrong():
    run_ranks(RANK, 2, "unfenced", "same", timeout_s=300)


def test_exposed_parameters_are_read_where_they_are():
    run_ranks(RANK, 2, "exposed", "same", timeout_s=300)


@pytest.mark.parametrize("way", ["killed", "stopped"])
def test_one_gpu_a_lost_engine_is_named(way):
    run_ranks(RANK, 2, "lost", "cuda_ipc", "same", way, timeout_s=300)


def test_one_gpu_speed():
    run_ranks(RANK, 2, "speed", "same", timeout_s=300)


@two_gpus
@pytest.mark.parametrize("kind", ["auto", "nccl"])
def test_two_gpus_every_bit_arrives(kind):
    run_ranks(RANK, 2, "stream", kind, "own", timeout_s=300)


@two_gpus
@pytest.mark.parametrize("way", ["killed", "stopped"])
def test_two_gpus_a_lost_engine_is_named_and_the_trainer_lives(way):
    run_ranks(RANK, 2, "lost", "nccl", "own", way, timeout_s=300)


def test_host_memory_is_refused():
    memory = CudaMemory(cuda_device())
    with pytest.raises(TransportError, match=r"a tensor of shape \(2,\) is on cpu"):
        memory.show(torch.zeros(2))


def test_another_gpus_memory_is_refused():
    memory = CudaMemory(cuda_device())
    record, _ = memory.show(memory.allocate(64))
    assert record["uuid"] == device_uuid(cuda_device())
    with pytest.raises(TransportError, match="a peer's memory is on GPU elsewhere"):
        memory.see(record | {"uuid": "elsewhere"}, [])
