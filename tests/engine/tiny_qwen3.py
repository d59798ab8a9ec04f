"""Tiny random checkpoints (Qwen3 first), what Hugging Face says of them, and a trainer that sends one to an engine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.executor import Sender
from megatron_spell.bridge.inventory import checkpoint_inventory
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.transports import routed
from megatron_spell.bridge.transports.meeting import open_store
from megatron_spell.cluster.local import free_port
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RolloutSection
from megatron_spell.rollout.landing import target_inventory

VOCAB_SIZE = 500  # no multiple of 64, so vLLM pads its embedding
BUCKET_BYTES = 100_000
TIMEOUT_S = 20.0
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "eos_token_id": 2,
    "bos_token_id": None,
    "pad_token_id": 0,
}
SETTINGS = RolloutSection(
    dtype="float32",
    max_model_len=512,
    max_num_seqs=64,
    kv_cache_gib=0.125,
    enforce_eager=True,
    start_timeout_s=240,
    request_timeout_s=60,
)


def write_checkpoint(folder: Path, *, seed: int, tied: bool = False, num_experts: int = 0, **sizes: int) -> Path:
    """A Qwen3 model, with experts a Qwen3-MoE one; weights so large that greedy choices are clear.

    `sizes` are fields of its config.json.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    make_config, make_model = (Qwen3MoeConfig, Qwen3MoeForCausalLM) if num_experts else (Qwen3Config, Qwen3ForCausalLM)
    experts = {"num_experts": num_experts, "num_experts_per_tok": 2, "moe_intermediate_size": 64} if num_experts else {}
    config = make_config(**SIZES | {"head_dim": 32, "tie_word_embeddings": tied} | experts | sizes)
    torch.manual_seed(seed)
    model = make_model(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(1 + 0.1 * torch.randn_like(weight) if "norm" in name else 0.08 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder


def write_family(folder: Path, model_type: str, rope: dict, *, seed: int, **sizes: int) -> Path:
    """A model of another family; its biases are large enough to show in every log-prob."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **SIZES | {"rope_parameters": rope} | sizes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(1 + 0.1 * noise if "norm" in name else 0.5 * noise if "bias" in name else 0.08 * noise)
    model.save_pretrained(folder)
    return folder


class Reference:
    """Hugging Face's model on the same folder, in float32."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def log_probs(self, prompt_ids_T: np.ndarray, token_ids_T: np.ndarray) -> np.ndarray:
        """Of the response's tokens."""
        ids = torch.tensor(np.concatenate([prompt_ids_T, token_ids_T])).long()
        all_log_probs = self.model(ids[None]).logits[0].log_softmax(-1)
        start = len(prompt_ids_T)
        return all_log_probs[start - 1 : -1].gather(1, ids[start:, None])[:, 0].numpy()

    @torch.no_grad()
    def greedy(self, prompt_ids_T: np.ndarray, num_tokens: int) -> np.ndarray:
        ids = torch.tensor(prompt_ids_T).long()
        for _ in range(num_tokens):
            ids = torch.cat([ids, self.model(ids[None]).logits[0, -1].argmax()[None]])
        return ids[len(prompt_ids_T) :].numpy()


class TrainerProcess:
    """A process that holds checkpoints and sends one whenever told to, as bridge rank 0; engine workers follow.

    `reports` are the engine's; without them there is one worker, which takes whole tensors. `edit` changes what is
    sent to each worker. `transport` is gloo or shm.
    """

    def __init__(
        self,
        shape_of: Path,
        reports=None,
        *,
        edit: Callable[[Inventory], Inventory] = lambda held: held,
        transport: str = "gloo",
    ) -> None:
        self.port, self.transport = free_port(), transport
        shape = ModelShape.load(shape_of)
        held = checkpoint_inventory(shape)
        targets = [target_inventory(shape, report) for report in reports] if reports else [held]
        self.num_workers = len(targets)
        self.plan = plan({0: held}, {1 + worker: edit(own) for worker, own in enumerate(targets)}).to_json()
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._tell(
            json.dumps({"plan": self.plan, "port": self.port, "size": 1 + self.num_workers, "transport": transport})
        )

    def channel(self) -> dict:
        return {
            "plan": self.plan,
            "rank": 1,
            "size": 1 + self.num_workers,
            "num_trainers": 1,
            "host": "127.0.0.1",
            "port": self.port,
            "dtype": "float32",
            "bucket_bytes": BUCKET_BYTES,
            "timeout_s": TIMEOUT_S,
            "transport": self.transport,
        }

    def send(self, folder: Path, *, die_after: int | None = None, check: int | None = None) -> None:
        """Begin to send; with `die_after` the process dies after that many messages."""
        self._tell(json.dumps({"folder": str(folder), "die_after": die_after, "check": check}))

    def sent(self) -> None:
        assert self.process.stdout.readline() == "sent\n"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _tell(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


class _Mortal:
    """A transport whose process dies after some messages."""

    def __init__(self, transport, num_messages: int) -> None:
        self.rank, self.brings_memory, self.send_buffers = transport.rank, False, transport.send_buffers
        self._transport, self._left = transport, num_messages

    def send(self, dst, tag, buffer):
        if self._left == 0:
            os._exit(1)
        self._left -= 1
        pending = self._transport.send(dst, tag, buffer)
        pending.wait()
        return pending


def _serve() -> None:
    from safetensors.torch import load_file

    from megatron_spell.bridge.planner import Plan

    start = json.loads(sys.stdin.readline())
    store = open_store("127.0.0.1", start["port"], serve=True, timeout_s=120)
    transport = routed.meet(start["transport"], store, 0, start["size"], timeout_s=120, address="127.0.0.1")
    for line in sys.stdin:
        order = json.loads(line)
        tensors = load_file(Path(order["folder"]) / "model.safetensors")
        sender = Sender(Plan.from_json(start["plan"]), 0, tensors, dtype=torch.float32, bucket_bytes=BUCKET_BYTES)
        sender.run(
            transport if order["die_after"] is None else _Mortal(transport, order["die_after"]), check=order["check"]
        )
        print("sent", flush=True)


if __name__ == "__main__":
    _serve()
