"""A rank that lets vLLM build models in several layouts and compares every parameter with the family's table.

argv: JSON list of {"folder", "tp", "pp", "dp", "ep"}. Started by tests/distributed/processes.py.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from megatron_spell.rollout.vllm_settings import prepare_environment

prepare_environment(120)
os.environ["VLLM_DIST_IDENT"] = os.environ["MASTER_PORT"]  # as vLLM's CPU worker does

from vllm.config import set_current_vllm_config  # noqa: E402  (the environment comes first)
from vllm.distributed.parallel_state import (  # noqa: E402
    destroy_model_parallel,
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.model_executor.model_loader import get_model  # noqa: E402
from vllm.v1.worker.cpu_model_runner import _set_torch_accelerator_to_noop  # noqa: E402

from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places  # noqa: E402
from megatron_spell.bridge.stacks import values  # noqa: E402
from megatron_spell.config.model_shape import ModelShape  # noqa: E402
from megatron_spell.layout.engine_mesh import EngineMesh  # noqa: E402
from megatron_spell.rollout.vllm_cpu import keep_plain_weights  # noqa: E402
from megatron_spell.rollout.vllm_inventory import (  # noqa: E402
    NotPlain,
    check_against_folder,
    check_plain,
    live_place,
)

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def main() -> None:
    keep_plain_weights()
    _set_torch_accelerator_to_noop()
    for number, case in enumerate(json.loads(sys.argv[1])):
        model, mesh = build(case, first=number == 0)
        check_case(model, mesh, Path(case["folder"]))
        print("checked", case, flush=True)
        destroy_model_parallel()


def build(case: dict, *, first: bool) -> tuple[torch.nn.Module, EngineMesh]:
    mesh = EngineMesh(case["tp"], case["pp"], case["dp"], case["ep"])
    args = EngineArgs(
        model=case["folder"],
        tensor_parallel_size=mesh.tp,
        pipeline_parallel_size=mesh.pp,
        enable_expert_parallel=mesh.expert_parallel,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        use_tqdm_on_load=False,
    )
    config = args.create_engine_config()
    config.parallel_config.data_parallel_size = mesh.dp
    with set_current_vllm_config(config):
        if first:
            init_distributed_environment(SIZE, RANK, "env://", RANK, "gloo")
        ensure_model_parallel_initialized(mesh.tp, mesh.pp)
        return get_model(vllm_config=config), mesh


def check_case(model: torch.nn.Module, mesh: EngineMesh, folder: Path) -> None:
    shape, place = ModelShape.load(folder), live_place(model)
    assert place == engine_places(shape, mesh)[RANK], f"live {place}, table {engine_places(shape, mesh)[RANK]}"
    check_plain(model, shape, place)
    tensors, inventory = load_file(folder / "model.safetensors"), engine_inventory(shape, place)
    live = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected = {name: torch.zeros_like(parameter) for name, parameter in live.items()}
    for segment in inventory:
        expected[segment.local_name][segment.local_box.index] = values(tensors, segment.hf_name, segment.hf_box)
    wrong = [name for name in live if not torch.equal(live[name], expected[name])]
    assert not wrong, f"{folder} {mesh}: {wrong}"
    check_against_folder(live, inventory, folder)
    for name, swapped in planted_faults(live):
        try:
            check_against_folder({**live, name: swapped}, inventory, folder)
        except NotPlain:
            continue
        raise AssertionError(f"{folder} {mesh}: parts of {name} were swapped and nobody noticed")


def planted_faults(live: dict[str, torch.Tensor]):
    """Gate and up, the heads of queries, keys and values, and experts in another order."""
    for name, tensor in live.items():
        if "gate_up_proj" in name or "qkv_proj.weight" in name:
            yield name, tensor.roll(len(tensor) // 2, 0)
        if "w13_weight" in name:
            yield name, tensor.roll(tensor.shape[1] // 2, 1)
        if ("w2_weight" in name or "w13_weight" in name) and len(tensor) > 1:
            yield name, tensor.flip(0)


if __name__ == "__main__":
    main()
