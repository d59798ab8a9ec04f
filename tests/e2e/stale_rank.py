"""A trainer rank whose bridge keeps sending the first weights, whatever the policy has learned since."""

import json
import sys
from pathlib import Path

from megatron_spell.config.schema import RunConfig
from megatron_spell.policy.worker import MegatronPolicy
from megatron_spell.train.worker import work


def freeze_what_is_sent() -> None:
    fresh = MegatronPolicy.local_tensors
    MegatronPolicy.local_tensors = lambda self: {name: tensor.clone() for name, tensor in fresh(self).items()}


if __name__ == "__main__":
    freeze_what_is_sent()
    sys.exit(work(RunConfig.model_validate(json.loads(Path(sys.argv[1]).read_text()))))
