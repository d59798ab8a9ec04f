"""The worker's extension for engines that land weights in place on a CPU: importing it keeps their weights plain."""

from megatron_spell.rollout.vllm_cpu import keep_plain_weights
from megatron_spell.rollout.vllm_worker import WorkerExtension  # noqa: F401  (named in vLLM's settings)

keep_plain_weights()
