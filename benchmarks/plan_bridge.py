"""Plan refreshes of real models over many layouts, and measure what planning takes.

    python benchmarks/plan_bridge.py [--out benchmarks/results/NAME.md]

Every case is a `megatron-spell check-bridge --dry-run --json` of its own, so its peak of memory is that of one plan.
The whole command is timed as well: interpreter, imports, the independent count and the predictions are in it.
Bytes and predicted seconds are reckoned, not measured: no weight exists and no link is used.

Exit code 1 when a case leaves a tensor uncovered, or takes more than LIMIT_S seconds or LIMIT_BYTES of memory.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_S, LIMIT_BYTES = 60.0, 4 * 2**30
NUM_TENSORS = {"qwen3_30b_a3b": 18867, "qwen3_32b": 707, "llama_3_1_8b": 291}
MOE_TRAINERS = ("tp=4,pp=2,dp=4,ep=8,etp=1", "tp=2,pp=4,dp=8,ep=8,etp=1", "tp=4,pp=4,dp=16,ep=8,etp=1")
DENSE_TRAINERS = ("tp=4,pp=2,dp=4", "tp=2,pp=4,dp=8", "tp=4,pp=4,dp=16")
ENGINES = ((4, "tp=4"), (8, "tp=2"), (2, "tp=8,ep"))
COLUMNS = (
    *("model", "trainers", "engines", "tensors", "moves", "messages", "moved GB", "a trainer sends GB (max / mean)"),
    *(
        "a worker receives GB",
        "extra MB: trainer, worker",
        "plan MB",
        "planning s",
        "command s",
        "peak MB",
        "h100 s (bound)",
    ),
)


@dataclass(frozen=True, slots=True)
class Case:
    model: str
    trainers: str
    num_engines: int
    engine_mesh: str

    def command(self) -> list[str]:
        layout = ["--mesh", self.trainers, "--engines", str(self.num_engines), "--engine-mesh", self.engine_mesh]
        run = f"examples/bridge_dry_run/{self.model}/run.yaml"
        return [sys.executable, "-m", "megatron_spell.cli.main", "check-bridge", run, "--dry-run", "--json", *layout]


def cases() -> Iterator[Case]:
    for model in NUM_TENSORS:
        for trainers in MOE_TRAINERS if model == "qwen3_30b_a3b" else DENSE_TRAINERS:
            for num_engines, mesh in ENGINES:
                yield Case(model, trainers, num_engines, mesh if "a3b" in model else mesh.removesuffix(",ep"))


def run(case: Case) -> tuple[dict, float]:
    """What the command says, and its seconds."""
    began = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(case.command(), cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(case.command())}: exit code {done.returncode}\n{done.stderr}{done.stdout}")
    return json.loads(done.stdout), time.perf_counter() - began


def fault(case: Case, found: dict, seconds: float) -> str | None:
    if found["num_tensors"] != NUM_TENSORS[case.model]:
        return f"{found['num_tensors']} of {NUM_TENSORS[case.model]} tensors are covered"
    if seconds > LIMIT_S or found["peak_memory_bytes"] > LIMIT_BYTES:
        return f"{seconds:.1f} s and {found['peak_memory_bytes'] / 1e6:.0f} MB"
    return None


def row(case: Case, found: dict, seconds: float) -> tuple[str, ...]:
    sent, received = found["sent_bytes"], found["received_bytes"]
    h100 = next(each for each in found["predictions"] if each["hardware"] == "h100")
    return (
        case.model,
        f"{found['trainers']['num_ranks']}: {case.trainers}",
        f"{case.num_engines} x {case.engine_mesh}",
        f"{found['num_tensors']:,}",
        f"{found['num_moves']:,}",
        f"{found['num_messages']:,}",
        f"{found['num_bytes'] / 1e9:.2f}",
        f"{sent['mean'] / 1e9:.2f} ({sent['imbalance']:.3f})",
        f"{received['max'] / 1e9:.2f}",
        f"{found['trainer_peak_extra_bytes'] / 1e6:.0f}, {found['worker_peak_extra_bytes'] / 1e6:.0f}",
        f"{found['plan_json_bytes'] / 1e6:.2f}",
        f"{found['planning_s']:.2f}",
        f"{seconds:.2f}",
        f"{found['peak_memory_bytes'] / 1e6:.0f}",
        f"{h100['seconds']:.3f} ({h100['bound']['seconds']:.3f})",
    )


def report(rows: list[tuple[str, ...]]) -> str:
    lines = [
        "# Planning refreshes of real models",
        "",
        "`python benchmarks/plan_bridge.py` with the package's hardware table, engines on GPUs of their own, nodes of",
        "8 GPUs, bfloat16, bridge.bucket_mib = 256 shared by the engines;",
        f"{os.cpu_count()} cores shared with other work, Python {platform.python_version()}, no GPU.",
        "Measured are planning (inventories, plan, buckets), the whole command, and its peak of memory. Extra memory",
        "is 2 buckets a link. The last column is a forecast from data-sheet rates beside its bound, not a measurement.",
        "",
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows)]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table there")
    out = parser.parse_args().out
    rows, faults = [], []
    for case in cases():
        found, seconds = run(case)
        rows.append(row(case, found, seconds))
        print(*rows[-1], sep=" | ", flush=True)
        if (why := fault(case, found, seconds)) is not None:
            faults.append(f"{case}: {why}")
    if out is not None:
        out.write_text(report(rows), encoding="utf-8")
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
