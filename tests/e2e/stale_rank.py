"""A trainer rank whose bridge keeps sending the first weights, whatever the policy has learned since."""

import json
import sys
from pathlib import Path

from megatron_spell.bridge.executor import Sender
from megatron_spell.config.schema import RunConfig
from megatron_spell.train import links
from megatron_spell.train.worker import work


class StaleSender(Sender):
    def __init__(self, plan, rank, tensors, **settings):
        super().__init__(plan, rank, {name: tensor.clone() for name, tensor in tensors.items()}, **settings)


if __name__ == "__main__":
    links.Sender = StaleSender
    sys.exit(work(RunConfig.model_validate(json.loads(Path(sys.argv[1]).read_text()))))
