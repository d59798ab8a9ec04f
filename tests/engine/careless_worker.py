"""The fault of the planted-fault tests: a worker that leaves out what MoE layers need before a reload."""

from megatron_spell.rollout import vllm_worker
from megatron_spell.rollout.vllm_worker import WorkerExtension  # noqa: F401  (named in vLLM's settings)

vllm_worker.prepare_reload = lambda model: None
