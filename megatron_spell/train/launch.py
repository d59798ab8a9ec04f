"""From checked settings to running trainer ranks."""

import sys
from pathlib import Path

from megatron_spell.cluster.local import Launch, RankFailed, run_ranks
from megatron_spell.config.schema import RunConfig
from megatron_spell.train.checkpoints import Checkpoints
from megatron_spell.train.preflight import faults
from megatron_spell.train.run_folder import RunFolder, write_json

WORKER = "megatron_spell.train.worker"
RUN_ERROR = 1


def check(config: RunConfig, *, resume: bool) -> list[str]:
    """One line for everything that keeps the run from starting; empty when nothing does."""
    found = faults(config, on_cpu=not Path("/dev/nvidiactl").exists())
    steps = Checkpoints(RunFolder(config.run_folder).checkpoints, config.checkpoint.keep).steps()
    if resume and not found and not steps:  # what stands there is looked at by `faults`
        found = [f"run_folder = {config.run_folder}: holds no whole checkpoint; start without --resume"]
    return found


def launch(config: RunConfig, *, rank: int | None) -> int:
    """Run to the end; the exit code. `rank` is that of this process under torchrun, None to start the ranks here."""
    folder = RunFolder(config.run_folder)
    if not rank:
        folder.make()
        write_json(folder.config, config.model_dump(mode="json"))
    if rank is not None:
        from megatron_spell.train.worker import work

        return work(config)
    return start_ranks(config, WORKER, [str(folder.config)])


def start_ranks(config: RunConfig, module: str, argv: list[str]) -> int:
    """Run `module` as the run's trainer ranks on this machine, to their end; the exit code."""
    ranks = Launch(
        module,
        argv,
        num_ranks=config.policy.mesh.mesh().world_size,
        port=config.cluster.master_port,
        threads_per_rank=config.policy.threads_per_rank,
    )
    try:
        run_ranks(ranks)
    except RankFailed as error:
        print(f"megatron-spell: {error}", file=sys.stderr)
        return RUN_ERROR
    return 0
