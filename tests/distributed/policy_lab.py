"""A tiny Qwen3, rows to train it on, and what plain torch makes of both: the truth the policy is measured against."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from megatron_spell.algo.losses import row_weights
from megatron_spell.algo.packing import pack
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import MeshSection, MoeSection, OptimizerSection, PolicySection
from megatron_spell.config.schema import AlgoSection, TrustSection
from megatron_spell.types.batches import PackedBatch, TrainRow
from megatron_spell.types.play import Role, TaskName

LAYOUT_SWITCHES = (
    "sequence_parallel",
    "distributed_optimizer",
    "backend",
    "megatron",
)  # of PolicySection, besides the mesh
VOCAB = 259  # odd, so that tensor parallelism pads it
TEMPERATURE = 0.7
# A large eps keeps Adam from blowing up rounding differences of gradients near zero.
OPTIMIZER = OptimizerSection(lr=1e-3, eps=1e-4, weight_decay=0.1)
ANY_DIFF = TrustSection(max_log_prob_diff=1e6, max_log_prob_diff_mean=1e6)
# (prompt length, response lengths, role): shared prompts, single responses, a response of one token
FAMILIES = (
    (13, (5, 9, 1, 7), Role.RESPONDER),
    (22, (3,), Role.QUESTIONER),
    (4, (6, 2), Role.VERIFIER),
    (30, (4, 8, 2), Role.RESPONDER),
)


# What makes the tiny model of each kind; rows reach position 43, past the original lengths.
KINDS = {
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen2": {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "llama": {
        "model_type": "llama",
        "head_dim": 32,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e3,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "yarn": {
        "model_type": "qwen2",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "beta_fast": 3.0,
            "original_max_position_embeddings": 24,
        },
    },
    "moe": {
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
}


def write_tiny(folder: Path, kind: str, tied: bool = False, num_layers: int = 4) -> Path:
    """A random model whose norms, biases and logits are far from trivial."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **KINDS[kind],
        vocab_size=VOCAB,
        hidden_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-6,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.1 * noise)
    model.float().save_pretrained(folder)
    return folder


def write_tiny_qwen3(folder: Path, tied: bool) -> Path:
    return write_tiny(folder, "qwen3", tied)


def drawn_families(rng: np.random.Generator) -> tuple[tuple[int, tuple[int, ...], Role], ...]:
    """As FAMILIES, of any lengths, empty responses among them."""
    return tuple(
        (int(rng.integers(1, 34)), tuple(rng.integers(0, 10, rng.integers(1, 5)).tolist()), role)
        for role in (*Role, Role.RESPONDER)
    )


def make_rows(seed: int, *, draw_lengths: bool = True) -> list[TrainRow]:
    """Rows with the lengths of FAMILIES for seed 0; for every other with drawn ones, unless told otherwise."""
    rng = np.random.default_rng(seed)
    rows = []
    for group, (prompt, responses, role) in enumerate(drawn_families(rng) if seed and draw_lengths else FAMILIES):
        prompt_ids = rng.integers(0, VOCAB, prompt)
        for length in responses:
            rows.append(
                TrainRow(
                    role=role,
                    task=TaskName.GENERAL_QA,
                    group=group,
                    prompt_ids_T=prompt_ids,
                    response_ids_A=rng.integers(0, VOCAB, length),
                    engine_log_probs_A=np.zeros(length, np.float32),
                    reward=0.0,
                    advantage=float(rng.normal()),
                    version=0,
                )
            )
    return rows


def make_batch(rows: list[TrainRow], dp: int = 1, max_bin_tokens: int = 40, **layout: int) -> PackedBatch:
    return pack(rows, row_weights(rows, "per_role"), num_dp=dp, max_bin_tokens=max_bin_tokens, **layout)


def batch_for(policy, rows: list[TrainRow]) -> PackedBatch:
    """The rows in bins as this policy's layout wants them."""
    section = policy.policy
    layout = {"pad_multiple": section.bin_multiple, "num_bins_multiple": section.num_bins_multiple}
    return make_batch(rows, policy.mesh.dp, **layout)


def with_engine_log_probs(rows: list[TrainRow], log_probs: list[np.ndarray]) -> list[TrainRow]:
    return [replace(row, engine_log_probs_A=found) for row, found in zip(rows, log_probs)]


def make_policy(folder: Path, mesh: MeshSection | None = None, dtype: str = "float32", **settings):
    """A policy of the model in `folder`, its weights not loaded yet. `setup.initialise` must have been called."""
    from megatron_spell.policy.worker import MegatronPolicy

    layout = {name: settings.pop(name) for name in LAYOUT_SWITCHES if name in settings}
    moe = settings.pop("moe", {}) | {name: settings.pop(name) for name in ("dispatcher",) if name in settings}
    optimizer = settings.pop("optimizer", OPTIMIZER)
    section = PolicySection(
        mesh=mesh or MeshSection(), dtype=dtype, optimizer=optimizer, moe=MoeSection(**moe), **layout
    )
    defaults = {"temperature": TEMPERATURE, "algo": AlgoSection(), "trust": ANY_DIFF, "seed": 1}
    return MegatronPolicy(ModelShape.load(folder), section, **(defaults | settings))


class Reference:
    """Hugging Face's model, torch's AdamW, every row run by itself."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        o = OPTIMIZER
        self.optimizer = torch.optim.AdamW(
            groups, lr=o.lr, eps=o.eps, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay
        )

    def logits(self, row: TrainRow) -> torch.Tensor:
        """Of the predictors of the response's tokens: [A, W]."""
        ids = torch.from_numpy(np.concatenate([row.prompt_ids_T, row.response_ids_A]))
        return self.model(ids[None]).logits[0, row.prompt_ids_T.size - 1 : -1]

    def log_probs(self, row: TrainRow, temperature: float = 1.0) -> torch.Tensor:
        scores = torch.log_softmax(self.logits(row) / temperature, -1)
        return scores.gather(-1, torch.from_numpy(row.response_ids_A)[:, None])[:, 0]

    def all_log_probs(self, rows: list[TrainRow]) -> list[np.ndarray]:
        return [self.log_probs(row).detach().numpy() for row in rows]

    def backward(self, rows: list[TrainRow]) -> None:
        self.optimizer.zero_grad()
        for row, weight in zip(rows, row_weights(rows, "per_role")):
            (-weight * row.advantage * self.log_probs(row, TEMPERATURE).sum()).backward()

    def update(self, rows: list[TrainRow]) -> float:
        """One step; the gradient norm before clipping."""
        self.backward(rows)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.clip_grad)
        self.optimizer.step()
        return float(norm)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights by their names in a folder."""
        return as_in_a_folder({name: p.detach() for name, p in self.model.named_parameters()})

    def gradients(self) -> dict[str, torch.Tensor]:
        return as_in_a_folder({name: p.grad.clone() for name, p in self.model.named_parameters()})


def as_in_a_folder(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers holds the experts of a layer in two tensors, folders hold a tensor for each projection of each."""
    named = {}
    for name, tensor in tensors.items():
        base, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                named |= {f"{base}.{expert}.gate_proj.weight": gate, f"{base}.{expert}.up_proj.weight": up}
        elif last == "down_proj":
            named |= {f"{base}.{expert}.down_proj.weight": each for expert, each in enumerate(tensor)}
        else:
            named[name] = tensor
    return named


def difference(folder: Path, tensors: dict[str, torch.Tensor]) -> float:
    """The largest difference between the weights in a Hugging Face folder and `tensors`."""
    found = load_file(folder / "model.safetensors")
    assert found.keys() == tensors.keys()
    return max((found[name].float() - tensor).abs().max().item() for name, tensor in tensors.items())
