"""One trainer rank: `python -m megatron_spell.train.worker CONFIG.json`, started by torchrun or by launch.py."""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.policy import setup
from megatron_spell.train.build import build_run
from megatron_spell.train.crew import Crew
from megatron_spell.train.loop import train
from megatron_spell.train.member import Member, rank_of_this_process

RUN_ERROR = 1


def work(
    config: RunConfig, lead: Callable[[RunConfig, Crew], None] | None = None, member_type: type[Member] = Member
) -> int:
    """Train, or do what `lead` does (rank 0), or follow (the others); the exit code.

    A failure is told in one line where it has one.
    """
    try:
        setup.initialise(config.policy.mesh.mesh(), config.policy.timeout_s)
        member = member_type(config, ModelShape.load(config.model.path))
        crew = Crew(member, wait_s=config.cluster.step_timeout_s)
        try:
            if rank_of_this_process():
                crew.follow()
            else:
                (lead or _lead)(config, crew)
        except Exception:
            _finish_save(member)
            raise
    except (ValueError, TimeoutError) as error:
        _tell(error)
        return RUN_ERROR
    setup.shut_down()
    return 0


def _lead(config: RunConfig, crew: Crew) -> None:
    run = build_run(config, crew)
    try:
        train(run)
        crew.dismiss()
    finally:
        run.close()


def _finish_save(member: Member) -> None:
    """The run has failed; the checkpoint under way is still worth having, and needs every rank until it is whole."""
    try:
        member.settle()
    except Exception as error:
        _tell(error)


def _tell(error: Exception) -> None:
    """Our own errors say in one line what happened; anything else needs its traceback."""
    if type(error).__module__.startswith("megatron_spell") or isinstance(error, TimeoutError):
        print(f"megatron-spell: rank {rank_of_this_process()}: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exc()


if __name__ == "__main__":
    settings = RunConfig.model_validate(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    sys.exit(work(settings))
