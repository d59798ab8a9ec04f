"""The one place that knows the device, and lets Megatron-Core train on a CPU and without Transformer Engine and Apex.

Megatron-Core 0.16 names the device "cuda" in factories, random states and type checks, and has no setting for another
one. `install()` gives Megatron's modules a view of torch in which those names mean the CPU. Torch itself keeps its own:
replacing its factories would, among other things, break models that other libraries build under `torch.device("meta")`.
Each adaptation stands in a function with its reason; all are needed with megatron-core 0.16.1, and can go with the
first release that takes the device from the model's parameters.
"""

import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Callable

import torch

CPU = torch.device("cpu")
FACTORIES = ("tensor", "empty", "zeros", "ones", "full", "arange", "empty_like", "zeros_like", "ones_like")

# Said at import, once per Megatron module; the optional kernels are known to be absent.
warnings.filterwarnings("ignore", message=r"(Transformer Engine and Apex are|Apex is) not installed")


class View:
    """A module with some of its names replaced, for whoever holds the view."""

    def __init__(self, base: object, **replaced: object) -> None:
        self._base = base
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> object:
        return getattr(self._base, name)


class NoStream:
    """Stands for a CUDA stream, and for the events recorded on it, where work is done at once; all are the same one."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoStream)

    def __hash__(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Callable:
        if name not in ("wait_stream", "record_event", "synchronize"):
            raise AttributeError(name)
        return lambda *_: self


def device() -> torch.device:
    """Where the parameters live."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU


def take_device() -> torch.device:
    """Make this rank's GPU the current one, before any group or tensor is made on it; the CPU where there is none.

    Ranks of one machine take its GPUs in their order (torchrun's LOCAL_RANK). Raises ValueError when they run out.
    """
    if not torch.cuda.is_available():
        return CPU
    local_rank = torch.distributed.get_node_local_rank(fallback_rank=0)
    if local_rank >= torch.cuda.device_count():
        raise ValueError(f"trainer {local_rank} of this machine finds {torch.cuda.device_count()} GPUs")
    torch.cuda.set_device(local_rank)
    return device()


def backend() -> str:
    """The torch.distributed backends: host tensors (weights on their way, commands) travel over gloo everywhere."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def install() -> None:
    """Adapt every Megatron module imported so far; call again after importing more. Little where CUDA is available."""
    _do_without_transformer_engine()
    if torch.cuda.is_available():
        return
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
            module.torch = torch_on_cpu()
    _unite_rng_states()
    _keep_tensors_in_place()
    _answer_type_checks()
    _route_on_cpu()


@functools.cache
def torch_on_cpu() -> View:
    """Torch as Megatron is to see it.

    Token counters, grad-norm scalars and loss scales are made with the literal `device="cuda"`, buffers with
    `device=torch.cuda.current_device()`; point-to-point messages end with `torch.cuda.synchronize()`. The device's
    generator, whose states the RNG tracker swaps, is the CPU's. The token dispatcher moves its counts on a stream of
    its own.
    """
    random_states = {
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "manual_seed": lambda seed: torch.random.default_generator.manual_seed(int(seed)),
    }
    cuda = View(
        torch.cuda,
        current_device=lambda: CPU,
        synchronize=lambda *_: None,
        Stream=NoStream,
        current_stream=NoStream,
        stream=lambda _: contextlib.nullcontext(),
        random=View(torch.cuda.random, **random_states),
        **random_states,
    )
    return View(torch, cuda=cuda, **{name: _on_cpu(getattr(torch, name)) for name in FACTORIES})


def _on_cpu(factory: Callable) -> Callable:
    @functools.wraps(factory)
    def make(*args, **kwargs):
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda":
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return make


@functools.cache
def _do_without_transformer_engine() -> None:
    """Where megatron-core 0.16 takes Transformer Engine for granted, on a GPU too.

    Every router asks whether `te_general_gemm` is None, which is defined with the library only. Recomputing a norm
    takes its own default, "not 8-bit", for 8-bit (`fp8 is not None`; 0.19 still does) and asks the library for more.
    """
    import megatron.core.tensor_parallel.random as recompute
    import megatron.core.transformer.moe.moe_utils as moe_utils

    if not recompute.HAVE_TE:
        moe_utils.te_general_gemm = getattr(moe_utils, "te_general_gemm", None)
        recompute.CheckpointWithoutOutput.__init__.__defaults__ = (None,)


@functools.cache
def _unite_rng_states() -> None:
    """The tracker sets states through a device's generator, and warns when the CPU's moved; here they are one."""
    import megatron.core.tensor_parallel.random as tracker

    tracker._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    logging.getLogger(tracker.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


@functools.cache
def _keep_tensors_in_place() -> None:
    """The copy of tied embeddings on the last pipeline stage is moved with `.cuda()`."""
    torch.Tensor.cuda = lambda self, *_, **__: self


@functools.cache
def _answer_type_checks() -> None:
    """The optimizers compare `param.type()` with "torch.cuda.FloatTensor" and the like."""
    plain_type = torch.Tensor.type

    @functools.wraps(plain_type)
    def cuda_type(self, *args, **kwargs):
        if args or kwargs:
            return plain_type(self, *args, **kwargs)
        return plain_type(self).replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = cuda_type


@functools.cache
def _route_on_cpu() -> None:
    """What routers and token dispatchers of megatron-core 0.16 take for granted of a GPU.

    Split sizes become plain numbers only on the way from the GPU. gloo gathers and scatters even pieces only.
    """
    import megatron.core.tensor_parallel.mappings as mappings
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

    token_dispatcher.maybe_move_tensor_to_cpu = _as_plain_sizes
    mappings._gather_along_first_dim = _gathering_uneven(mappings._gather_along_first_dim)
    mappings._reduce_scatter_along_first_dim = _scattering_uneven(mappings._reduce_scatter_along_first_dim)


def _as_plain_sizes(tensor: object, as_numpy: bool = False, record_stream: bool = False) -> object:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _gathering_uneven(gather: Callable) -> Callable:
    @functools.wraps(gather)
    def gather_any(own, group, output_split_sizes=None, use_global_buffer=False):
        if output_split_sizes is None or group.size() == 1:
            return gather(own, group, None, use_global_buffer)
        sizes = [int(size) for size in output_split_sizes]
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: own.shape[0]] = own
        pieces = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(pieces, padded, group=group)
        return torch.cat([piece[:size] for piece, size in zip(pieces, sizes)])

    return gather_any


def _scattering_uneven(scatter: Callable) -> Callable:
    @functools.wraps(scatter)
    def scatter_any(everyone, group, input_split_sizes=None, use_global_buffer=False):
        if input_split_sizes is None or group.size() == 1:
            return scatter(everyone, group, None, use_global_buffer)
        total = everyone.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=group)
        return total.split([int(size) for size in input_split_sizes])[group.rank()].clone()

    return scatter_any
