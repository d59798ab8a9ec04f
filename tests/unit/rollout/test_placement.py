import pytest

from megatron_spell.config.schema import RolloutSection
from megatron_spell.rollout.placement import resources

GPUS = [str(n) for n in range(8)]
TWO = RolloutSection(tensor_parallel=2)


def test_split_engines_have_the_gpus_after_the_trainers():
    def env(number: int, rollout: RolloutSection = TWO) -> dict:
        return resources(rollout, number, num_trainers=4, on_cpu=False, gpus=GPUS)["env"]

    assert [env(n)["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["4,5", "6,7"]
    together = TWO.model_copy(update={"placement": "colocated"})
    assert [env(n, together)["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["0,1", "2,3"]
    with pytest.raises(ValueError, match="engine 2 needs GPUs 8 to 9 of this machine, which has 8; lower"):
        env(2)


def test_ray_hands_out_gpus_on_a_cluster_and_a_cpu_has_none():
    assert resources(TWO, 0, num_trainers=4, on_cpu=False, gpus=None) == {"num_cpus": 2, "num_gpus": 2, "env": {}}
    assert resources(TWO, 0, num_trainers=4, on_cpu=True, gpus=None) == {"num_cpus": 2, "num_gpus": 0, "env": {}}
