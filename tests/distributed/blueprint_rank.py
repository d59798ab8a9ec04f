"""One process that builds ranks of Qwen3-30B-A3B on the meta device, in layouts drawn from all legal ones."""

import random
import resource
from itertools import pairwise, product

import torch

from megatron_spell.bridge.inventory import trainer_shapes
from megatron_spell.config.layout_rules import layout_faults
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import PolicySection
from megatron_spell.policy import platform  # noqa: F401  (quiets Megatron's import)
from megatron_spell.policy.blueprint import build_on_meta
from megatron_spell.policy.model import local_parameters

QWEN3_30B_A3B = ModelShape.from_json(
    {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
    }
)
NUM_DRAWN = 12  # of even splits, and half as many of uneven ones
MEMORY_LIMIT_GIB = 1.5  # torch, Megatron and 48 layers of 128 modules each; the weights would take 114 GiB


def legal_layouts() -> list[PolicySection]:
    sizes = product((1, 2, 4), (1, 2, 4, 8), (1, 2), (1, 2, 8), (1, 4, 8, 16), (None, 1, 2), (1, 2, 3))
    names = ("tp", "pp", "cp", "dp", "ep", "etp", "vpp")
    drafts = [dict(zip(names, size)) for size in sizes]
    sections = [PolicySection(mesh=mesh, sequence_parallel=mesh["tp"] > 1) for mesh in drafts]
    return [section for section in sections if not list(layout_faults(QWEN3_30B_A3B, section))]


def unevenly_split(policy: PolicySection, draw: random.Random) -> PolicySection:
    """The same layout with any split of the layers over its stretches."""
    mesh = policy.mesh
    cuts = sorted(draw.sample(range(1, QWEN3_30B_A3B.num_layers), mesh.pp * mesh.vpp - 1))
    sizes = tuple(stop - start for start, stop in pairwise([0, *cuts, QWEN3_30B_A3B.num_layers]))
    uneven = policy.model_copy(update={"mesh": mesh.model_copy(update={"stage_layers": sizes})})
    assert not list(layout_faults(QWEN3_30B_A3B, uneven))
    return uneven


def main() -> None:
    assert QWEN3_30B_A3B.num_parameters == 30_532_122_624
    layouts, draw = legal_layouts(), random.Random(0)
    assert len(layouts) > 200
    pipelined = [policy for policy in layouts if policy.mesh.pp > 1]
    uneven = [unevenly_split(policy, draw) for policy in draw.sample(pipelined, NUM_DRAWN // 2)]
    for policy in [PolicySection(), *draw.sample(layouts, NUM_DRAWN), *uneven]:
        mesh = policy.mesh.mesh()
        rank = draw.randrange(mesh.world_size)
        parameters = local_parameters(build_on_meta(QWEN3_30B_A3B, policy, rank), mesh)
        assert {p.device for p in parameters.values()} == {torch.device("meta")}, str(mesh)
        found = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        assert found == trainer_shapes(QWEN3_30B_A3B, mesh, rank), f"{mesh}, rank {rank}"
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak_gib < MEMORY_LIMIT_GIB, f"{peak_gib:.2f} GiB"


if __name__ == "__main__":
    main()
