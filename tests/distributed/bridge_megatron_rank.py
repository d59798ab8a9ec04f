"""One rank that builds Megatron models and compares their parameters with what the bridge expects."""

import json
import sys
from itertools import product

import torch.distributed as dist
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megatron_spell.bridge.inventory import trainer_shapes
from megatron_spell.config.model_shape import FAMILIES
from megatron_spell.config.policy_sections import MeshSection, PolicySection
from megatron_spell.policy import setup
from megatron_spell.policy.model import build_model, local_parameters
from tests.unit.bridge.made_weights import made_shape


def check(axes: dict[str, int]) -> None:
    policy = PolicySection(mesh=MeshSection(**axes), dtype="float32", sequence_parallel=axes.get("tp", 1) > 1)
    mesh = policy.mesh.mesh()
    setup.initialise(mesh, timeout_s=60)
    model_parallel_cuda_manual_seed(0)
    for family, tied in product(FAMILIES, (True, False)):
        shape = made_shape(layers=4, tied=tied, vocab=37, hidden=32, head_dim=8, family=family)
        if shape.experts is None and mesh.ep > 1:
            continue
        parameters = local_parameters(build_model(shape, policy, 1.0), mesh)
        found = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        assert found == trainer_shapes(shape, mesh, dist.get_rank()), found
    setup.shut_down()


if __name__ == "__main__":
    check(json.loads(sys.argv[1]))
