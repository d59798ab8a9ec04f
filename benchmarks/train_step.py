"""One training step's gradients on prefix-shared bins, against two ways without sharing, over the same rows.

    python benchmarks/train_step.py [--prompt 1024 4096 --answer 256 --answers 8 --groups 1 --repeats 5]

shared: a prompt once, its answers behind it, one group a bin. separate: every row with its own prompt, packed into bins
of the same capacity. padded: one row a bin, padded to the longest (the padding attends to itself alone, so this is
kinder than a padded batch usually is). Answer lengths spread evenly from half of --answer to one and a half.

All ways run in turn in one process; a ratio is of two passes of one repeat. Time is processor time on the CPU, which
other processes on the machine do not add to (they do slow the caches), and the clock's on a GPU. The first round warms
up and its gradients are compared. FLOPs are counted, forward and backward, without recomputation
(algo/flops.py). Peak memory is that of one pass above what was resident before it: on the CPU by resetting the peak
resident size (Linux), on a GPU by the allocator's count.

Exit code 1 when gradients differ, when sharing is too slow (LEAST_RATIO), or when it gains less than 1 / 1.3 of what
the FLOPs promise. On the CPU the quickstart's model in float32; on a GPU a random one of 1.2B parameters in bfloat16.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from resident import peak, start_peak
from rich.console import Console
from rich.table import Table

from megatron_spell.algo.flops import ForwardFlops
from megatron_spell.algo.losses import row_weights
from megatron_spell.algo.packing import pack
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import PolicySection
from megatron_spell.config.schema import AlgoSection, TrustSection
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import platform, setup, step
from megatron_spell.policy.worker import MegatronPolicy
from megatron_spell.types.batches import PackedBatch, TrainRow
from megatron_spell.types.play import Role, TaskName

BASE_MODEL = Path(__file__).parents[1] / "examples/quickstart/base_model"
ABOUT_1B = ModelShape(
    family="llama",
    vocab_size=128256,
    hidden_size=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    ffn_size=8192,
    tied_embeddings=True,
    rope_theta=5e5,
    norm_eps=1e-5,
    max_positions=131072,
    qkv_bias=False,
    qk_norm=False,
    rope_scaling=None,
)
# Without it 64K tokens' activations would take some 150 GB; computing feed-forward layers again leaves some 60.
ON_GPU = {"megatron": {"transformer": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}}}
PROMPTS = {"cpu": [1024, 4096], "cuda": [16384, 65536]}
# Separate rows must take this many times as long as shared bins, from prompts of this length on (answers of 256 x 8).
LEAST_RATIO = {"cpu": (4096, 3.5), "cuda": (16384, 4.0)}
FLOP_RATIO_SLACK = 1.3
# Of the norm of the gradients; bfloat16 rounds every product of another order of rows differently.
GRADIENT_TOLERANCE = {"cpu": 1e-5, "cuda": 3e-2}
# Dense bfloat16, by what the device's name holds; the first that fits.
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362}


@dataclass(slots=True)
class Way:
    """One way to run the rows, and what its passes took."""

    batch: PackedBatch
    flops: int
    gradients: list[torch.Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of the processor, or on a GPU the clock's
    clock_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


def make_rows(options: argparse.Namespace, prompt: int, vocab_size: int) -> list[TrainRow]:
    rng = np.random.default_rng(0)
    lengths = np.linspace(0.5, 1.5, options.answers) * options.answer if options.answers > 1 else [options.answer]
    rows = []
    for group in range(options.groups):
        prompt_ids = rng.integers(3, vocab_size, prompt).astype(np.int32)
        for length in lengths:
            response_ids = rng.integers(3, vocab_size, max(1, int(length))).astype(np.int32)
            advantage, nothing = float(rng.normal()), np.zeros(response_ids.size, np.float32)
            row = TrainRow(
                Role.RESPONDER, TaskName.GENERAL_QA, group, prompt_ids, response_ids, nothing, 0, advantage, 0
            )
            rows.append(row)
    return rows


def make_ways(options: argparse.Namespace, prompt: int, shape: ModelShape) -> dict[str, Way]:
    rows = make_rows(options, prompt, shape.vocab_size)
    sizes = [row.response_ids_A.size - 1 for row in rows]
    capacity, longest = prompt + sum(sizes) // options.groups, prompt + max(sizes)
    how = {
        "shared": {"max_bin_tokens": capacity},
        "separate": {"max_bin_tokens": capacity, "share_prompts": False},
        "padded": {"max_bin_tokens": longest, "pad_multiple": longest, "share_prompts": False},
    }
    forward = ForwardFlops.of(shape)
    ways = {}
    for name in options.ways:
        batch = pack(
            rows, row_weights(rows, "per_role"), num_dp=1, attention_tokens=forward.attention_tokens, **how[name]
        )
        ways[name] = Way(batch, forward.of_step(packed for bins in batch.bins_D_B for packed in bins))
    return ways


def make_policy(device: str, settings: dict) -> MegatronPolicy:
    on_cpu = device == "cpu"
    shape = replace(ModelShape.load(BASE_MODEL), max_positions=2**20) if on_cpu else ABOUT_1B
    ours = {"dtype": "float32"} if on_cpu else {"dtype": "bfloat16"} | ON_GPU
    section = PolicySection.model_validate(ours | settings)
    policy = MegatronPolicy(shape, section, temperature=0.7, algo=AlgoSection(), trust=TrustSection(), seed=0)
    if on_cpu:
        policy.load_hf(BASE_MODEL)
        return policy
    torch.manual_seed(0)
    for parameter in policy.local_tensors().values():
        parameter.fill_(1.0) if parameter.dim() == 1 else parameter.normal_(0.0, 0.02)
    return policy


def run_pass(policy: MegatronPolicy, way: Way) -> None:
    """Forward and backward over the way's bins; the gradients stay in the policy."""
    resident = start_peak()
    started, began = time.process_time(), time.perf_counter()
    step.accumulate_gradients(policy.ddp, way.batch, policy.algo)
    if platform.device().type == "cuda":
        torch.cuda.synchronize()
    way.clock_seconds.append(time.perf_counter() - began)
    way.seconds.append(way.clock_seconds[-1] if platform.device().type == "cuda" else time.process_time() - started)
    way.peak_bytes.append(peak() - resident)


def measure(policy: MegatronPolicy, ways: dict[str, Way], repeats: int) -> None:
    for way in ways.values():
        run_pass(policy, way)
        way.gradients = [parameter.main_grad.to("cpu", copy=True) for parameter in policy.parameters.values()]
        for measured in (way.seconds, way.clock_seconds, way.peak_bytes):
            measured.clear()
    for _ in range(repeats):
        for way in ways.values():
            run_pass(policy, way)


def difference(one: Way, other: Way) -> float:
    """Norm of the gradients' difference over that of the gradients."""
    squares = [
        ((a - b).double().square().sum(), a.double().square().sum()) for a, b in zip(one.gradients, other.gradients)
    ]
    return float((sum(d for d, _ in squares) / sum(s for _, s in squares)).sqrt())


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def time_ratios(way: Way, shared: Way) -> list[float]:
    return [slow / fast for slow, fast in zip(way.seconds, shared.seconds)]


def show_passes(console: Console, prompt: int, ways: dict[str, Way], peak_tflops: float | None) -> None:
    table = Table(title=f"prompt {prompt}")
    for column in (
        "way",
        "bins",
        "tokens",
        "useful",
        "TFLOP",
        "seconds, median (range)",
        "by the clock",
        "GFLOP/s",
        "MiB",
    ):
        table.add_column(column, justify="right")
    if peak_tflops:
        table.add_column("MFU", justify="right")
    for name, way in ways.items():
        batch, seconds = way.batch, statistics.median(way.seconds)
        cells = [
            name,
            str(sum(len(bins) for bins in batch.bins_D_B)),
            str(batch.num_bin_tokens),
            f"{batch.useful_token_fraction:.1%}",
            f"{way.flops / 1e12:.3f}",
            spread(way.seconds),
            f"{statistics.median(way.clock_seconds):.2f}",
            f"{way.flops / seconds / 1e9:.1f}",
            f"{statistics.median(way.peak_bytes) / 2**20:.0f}",
        ]
        table.add_row(*cells, *([f"{way.flops / seconds / 1e12 / peak_tflops:.1%}"] if peak_tflops else []))
    console.print(table)


def judge(console: Console, device: str, options: argparse.Namespace, prompt: int, ways: dict[str, Way]) -> list[str]:
    """Print each way against the shared one; what falls short, in words."""
    table = Table(title=f"against shared bins, prompt {prompt}")
    for column in (
        "way",
        "tokens",
        "FLOPs",
        "time, median (range)",
        "time / FLOPs",
        "peak memory",
        "gradients differ by",
    ):
        table.add_column(column, justify="right")
    shared, faults = ways["shared"], []
    for name, way in ways.items():
        if way is shared:
            continue
        ratios, flop_ratio, off = time_ratios(way, shared), way.flops / shared.flops, difference(way, shared)
        ratio = statistics.median(ratios)
        memory = statistics.median(way.peak_bytes) / statistics.median(shared.peak_bytes)
        tokens = way.batch.num_bin_tokens / shared.batch.num_bin_tokens
        table.add_row(
            name,
            f"{tokens:.2f}",
            f"{flop_ratio:.2f}",
            spread(ratios),
            f"{ratio / flop_ratio:.2f}",
            f"{memory:.2f}",
            f"{off:.1e}",
        )
        from_prompt, least = LEAST_RATIO[device]
        at = f"prompt {prompt}, {name}:"
        if not off <= GRADIENT_TOLERANCE[device]:
            faults.append(f"{at} the gradients differ by {off:.1e} of their norm")
        if (
            name == "separate"
            and prompt >= from_prompt
            and (options.answer, options.answers) == (256, 8)
            and ratio < least
        ):
            faults.append(f"{at} {ratio:.2f} times the time of shared bins, {least} is asked for")
        if ratio < flop_ratio / FLOP_RATIO_SLACK:
            faults.append(
                f"{at} time ratio {ratio:.2f} is not within {FLOP_RATIO_SLACK} of the FLOP ratio {flop_ratio:.2f}"
            )
    console.print(table)
    return faults


def peak_of_device(device: str, options: argparse.Namespace) -> float | None:
    """bfloat16 TFLOP/s that utilisation is counted against."""
    if options.peak_tflops or device == "cpu":
        return options.peak_tflops
    name = torch.cuda.get_device_name()
    return next(
        (peak for known, peak in PEAK_TFLOPS.items() if known.split()[0] in name and known.split()[-1] in name), None
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, nargs="+", help="prompt lengths in tokens")
    for name, default in (("answer", 256), ("answers", 8), ("groups", 1), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--ways", nargs="+", choices=("shared", "separate", "padded"), default=["shared", "separate", "padded"]
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--policy", type=json.loads, default={}, help="fields of the policy section, as JSON")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for utilisation; known GPUs have theirs")
    options = parser.parse_args()
    if "shared" not in options.ways:
        parser.error("--ways must hold shared; the others are measured against it")
    return options


def main() -> int:
    options = read_options()
    device = platform.device().type
    if options.device not in ("auto", device):
        print(f"--device {options.device}: the policy runs on {device} here; hide GPUs with CUDA_VISIBLE_DEVICES=''")
        return 2
    console = Console(width=140)
    setup.initialise(Mesh(), timeout_s=600)
    policy = make_policy(device, options.policy)
    peak_tflops = peak_of_device(device, options)
    console.print(
        f"{policy.shape.num_parameters / 1e6:.1f}M parameters, {policy.policy.dtype}, torch {torch.__version__} on"
        f" {device}, {torch.get_num_threads()} threads; groups: {options.groups}, each {options.answers} answers of"
        f" {options.answer} tokens on average"
    )
    faults = []
    for prompt in options.prompt or PROMPTS[device]:
        ways = make_ways(options, prompt, policy.shape)
        measure(policy, ways, options.repeats)
        show_passes(console, prompt, ways, peak_tflops)
        faults += judge(console, device, options, prompt, ways)
        console.print(f"the process held at most {peak() / 2**30:.2f} GiB in the last pass")
    for fault in faults:
        console.print(f"FELL SHORT: {fault}")
    setup.shut_down()
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
