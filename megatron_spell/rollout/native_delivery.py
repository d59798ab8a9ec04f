"""What engines are told of a delivery over vLLM's own transfer, whose trainer side is vllm_native.py."""

from typing import Any

from megatron_spell.bridge.executor import tensors_to_come
from megatron_spell.bridge.planner import Plan

SENDER = 0  # the trainer rank that vLLM's trainer-side engine sends from


def delivery(gathering: Plan, dtype: str, bucket_bytes: int, itemsize: int) -> dict[str, Any]:
    """vLLM's `NCCLWeightTransferUpdateInfo` as plain values: the tensors in the order in which the sender has them."""
    coming = tensors_to_come(gathering, SENDER, bucket_bytes, itemsize)
    shapes = [list(shape) for shape in coming.values()]
    return {"names": list(coming), "dtype_names": [dtype] * len(coming), "shapes": shapes}
