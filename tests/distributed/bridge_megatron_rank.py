"""One rank that builds Megatron models and compares their parameters with what the bridge expects."""

import sys
from itertools import product

import torch.distributed as dist
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megatron_spell.bridge.inventory import trainer_shapes
from megatron_spell.config.model_shape import FAMILIES
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import setup
from megatron_spell.policy.model import build_model
from tests.unit.bridge.made_weights import made_shape


def check(mesh: Mesh) -> None:
    setup.initialise(mesh, timeout_s=60)
    model_parallel_cuda_manual_seed(0)
    for family, tied in product(FAMILIES, (True, False)):
        shape = made_shape(layers=4, tied=tied, vocab=37, hidden=32, head_dim=8, family=family)
        model = build_model(shape, mesh, "float32", 1.0)
        found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        assert found == trainer_shapes(shape, mesh, dist.get_rank()), found
    setup.shut_down()


if __name__ == "__main__":
    check(Mesh(tp=int(sys.argv[1]), pp=int(sys.argv[2]), dp=int(sys.argv[3])))
