"""How vLLM is set up for this project: the environment it reads, its engine arguments, and sampling parameters.

Written for vLLM 0.32 (CPU and CUDA builds).
"""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_spell.config.schema import Landing, RolloutSection, Transport
from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.types.seeds import stream_seed

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs

BACKEND = "megatron_spell"  # name of our weight-transfer backend
NATIVE = {"vllm_nccl": "nccl"}  # bridge.transport -> vLLM's own backend
MIN_BATCHED_TOKENS = 2048  # vLLM's own default on a CPU
WORKER = "megatron_spell.rollout.vllm_worker.WorkerExtension"
PLAIN_WORKER = "megatron_spell.rollout.vllm_plain_worker.WorkerExtension"  # keeps weights plain on a CPU


def prepare_environment(start_timeout_s: float) -> None:
    """Set what vLLM reads from the environment; must run before vLLM is first imported in a process.

    What the user has set stays, except the start limit, which is the engine's own.
    """
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # trainers share the cores: threads come from OMP_NUM_THREADS, unpinned
        "HF_HUB_OFFLINE": "1",  # models are local folders
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_LOG_LEVEL": "ERROR",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # VLLM_CPU_KVCACHE_SPACE overrules kv_cache_memory_bytes (vllm/platforms/cpu.py) and holds whole GiB only.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    os.environ["VLLM_ENGINE_READY_TIMEOUT_S"] = str(math.ceil(start_timeout_s))


def engine_args(
    model: Path,
    settings: RolloutSection,
    seed: int,
    *,
    expert_choices: bool = False,
    landing: Landing = "auto",
    transport: Transport = "auto",
) -> "AsyncEngineArgs":
    """Token ids in and out, raw log-probs, prefix caching, weights through our own backend or vLLM's (vllm_nccl).

    `expert_choices` asks for the experts of every token. vLLM 0.32 refuses that where it does not run its model runner
    V2, which wants Triton: no CPU build has a fitting one. Workers on a CPU keep plain weights only for `landing`
    "in_place": the packed ones compute faster.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    given: dict[str, Any] = {
        "model": str(model),
        "seed": seed,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
        "enforce_eager": settings.enforce_eager,
        "tensor_parallel_size": settings.tensor_parallel,
        "pipeline_parallel_size": settings.pipeline_parallel,
        "data_parallel_size": settings.data_parallel,
        "enable_expert_parallel": settings.expert_parallel,
        "worker_extension_cls": WORKER,
        "enable_return_routed_experts": expert_choices,
    }
    if current_platform.is_cpu():
        # A seeded request whose prefill is cut ends the engine: vLLM 0.32.0 takes the discarded draw back by the
        # generator's offset (v1/worker/gpu_model_runner.py), which CPU generators do not have.
        given["enable_chunked_prefill"] = False
        given["max_num_batched_tokens"] = max(settings.max_model_len, MIN_BATCHED_TOKENS)
        if landing == "in_place":
            given["worker_extension_cls"] = PLAIN_WORKER
    else:
        given["enable_sleep_mode"] = settings.placement == "colocated"
        given["moe_backend"] = "triton"  # other MoE kernels re-lay the weights: a second load spoils them
    return AsyncEngineArgs(
        **given,
        skip_tokenizer_init=True,
        generation_config="vllm",  # the model folder's sampling defaults and stop tokens stay out of it
        logprobs_mode="raw_logprobs",  # temperature 1, not renormalised over top-p: the trainer's log-probs
        enable_prefix_caching=True,
        disable_log_stats=True,
        use_tqdm_on_load=False,
        weight_transfer_config={"backend": NATIVE.get(transport, BACKEND)},
    )


def sampling_params(spec: SamplingSpec, sample: int, room: int, num_prompt_tokens: int) -> "SamplingParams":
    """Parameters of sample `sample` of `spec`, which may write at most `room` tokens.

    Expert choices of the prompt are wanted once, with the first sample.
    vLLM's own rule for the samples of a request is seed + i, by which neighbouring seeds share most of their samples.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1,
        temperature=spec.temperature,
        top_p=spec.top_p,
        max_tokens=min(spec.max_tokens, room),
        seed=None if spec.seed is None else stream_seed(spec.seed, "sample", sample),
        stop_token_ids=list(spec.stop_ids),
        ignore_eos=True,  # only `stop_ids` stop
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        routed_experts_prompt_start=num_prompt_tokens if sample > spec.first else 0,
    )
