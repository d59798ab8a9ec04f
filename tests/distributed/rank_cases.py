"""What a rank does with the cases it is given: one launch for many, because starting costs more than all they do."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_spell.config.policy_sections import MeshSection
from megatron_spell.policy import setup

Faults = Mapping[str, Callable[[], AbstractContextManager]]


def cases_given() -> list[dict]:
    """Those of the JSON file that is the process's first argument."""
    return json.loads(Path(sys.argv[1]).read_text())


def run_cases(run_case: Callable[[dict], dict], faults: Faults) -> None:
    """Run the cases one after the other, each with process groups of its own and with its fault, if any, planted.

    What `run_case` returns on rank 0 goes to OUT/seen.json.
    """
    for case in cases_given():
        print({name: value for name, value in case.items() if name != "engine_log_probs"}, flush=True)
        with faults[case["fault"]]() if "fault" in case else nullcontext():
            setup.initialise(MeshSection(**case["mesh"]).mesh(), timeout_s=60)
            seen = run_case(case)
            if dist.get_rank() == 0:
                Path(case["out"], "seen.json").write_text(json.dumps(seen))
            parallel_state.destroy_model_parallel()
    setup.shut_down()
