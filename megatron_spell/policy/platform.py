"""The one place that lets Megatron-Core train on a CPU, without Transformer Engine and without Apex.

Megatron-Core 0.16 names the device "cuda" in factories, RNG bookkeeping and type checks, and has no setting for another
one. `install()` changes what those names mean in this process, only where no CUDA device is present. Each adaptation is a
function with its reason; all of them were needed with megatron-core 0.16.1 (and, as far as tried, 0.19.1) and can go
with the first release that takes the device from the model's parameters.
"""

import functools
import logging
import warnings
from collections.abc import Callable

import torch

CPU = torch.device("cpu")
FACTORIES = ("tensor", "empty", "zeros", "ones", "full", "arange", "empty_like", "zeros_like", "ones_like")

# Said at import, once per Megatron module; the optional kernels are known to be absent.
warnings.filterwarnings("ignore", message=r"(Transformer Engine and Apex are|Apex is) not installed")

_installed = False


def device() -> torch.device:
    """Where the parameters live."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU


def backend() -> str:
    """The torch.distributed backend of that device."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def install() -> None:
    """Adapt this process once; does nothing where CUDA is available."""
    global _installed
    if _installed or torch.cuda.is_available():
        return
    _installed = True
    _name_the_device()
    _redirect_factories()
    _unite_rng_states()
    _keep_tensors_in_place()
    _answer_type_checks()


def _name_the_device() -> None:
    """Buffers are made with `device=torch.cuda.current_device()`; p2p ends with `torch.cuda.synchronize()`."""
    torch.cuda.current_device = lambda: CPU
    torch.cuda.synchronize = lambda *_: None


def _redirect_factories() -> None:
    """Token counters, grad-norm scalars and loss scales are made with the literal `device="cuda"`."""
    for name in FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(factory: Callable) -> Callable:
    @functools.wraps(factory)
    def make(*args, **kwargs):
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda":
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return make


def _unite_rng_states() -> None:
    """The RNG tracker swaps states of the device generator; here that is the CPU generator.

    One function object per name, because torch._dynamo refuses a shared one.
    """
    import megatron.core.tensor_parallel.random as tracker

    for module in (torch.cuda, torch.cuda.random):
        module.get_rng_state = lambda *_, **__: torch.get_rng_state()
        module.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
        module.manual_seed = lambda seed: torch.random.default_generator.manual_seed(int(seed))
    tracker._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # The tracker warns when the CPU generator moved inside its context: here it is the same generator.
    logging.getLogger(tracker.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


def _keep_tensors_in_place() -> None:
    """The copy of tied embeddings on the last pipeline stage is moved with `.cuda()`."""
    torch.Tensor.cuda = lambda self, *_, **__: self


def _answer_type_checks() -> None:
    """The optimizers compare `param.type()` with "torch.cuda.FloatTensor" and the like."""
    plain_type = torch.Tensor.type

    @functools.wraps(plain_type)
    def cuda_type(self, *args, **kwargs):
        if args or kwargs:
            return plain_type(self, *args, **kwargs)
        return plain_type(self).replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = cuda_type
