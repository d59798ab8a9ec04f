"""Make a mixture of experts of a dense Qwen3 folder: sparse upcycling (Komatsuzaki et al., arXiv 2212.05055).

    python examples/quickstart_moe/make_base_model.py --out runs/quickstart_moe/base_model

Every expert begins as the dense feed-forward network with a little noise, and the router is random and small. The
weights of a token's experts add up to one, so without noise the model says what the dense one does.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

DENSE = Path(__file__).parents[1] / "quickstart" / "base_model"
ROUTER_STD = 0.1  # on normalised hidden states of 128: scores of about one
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    upcycle(options.dense, options.out, options.experts, options.per_token, options.noise, options.seed)
    print(f"{options.out}: {options.experts} experts in every layer, {options.per_token} of them for each token")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dense", type=Path, default=DENSE)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--per-token", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.01, help="of the experts' weights, relative to their spread")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def upcycle(dense: Path, out: Path, num_experts: int, per_token: int, noise: float, seed: int) -> None:
    """Write the folder `out`: config and weights of the mixture, everything else as in `dense`."""
    out.mkdir(parents=True, exist_ok=True)
    for path in dense.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, out)
    config = json.loads((dense / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(mixture_config(config, num_experts, per_token), indent=2) + "\n")
    tensors = mixture(load_file(dense / "model.safetensors"), num_experts, noise, seed)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def mixture_config(dense: dict, num_experts: int, per_token: int) -> dict:
    if dense["model_type"] != "qwen3":
        raise SystemExit(f"a model of type {dense['model_type']} cannot be upcycled; give a qwen3 folder")
    kept = {name: value for name, value in dense.items() if name not in ("layer_types", "max_window_layers")}
    return kept | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": num_experts,
        "num_experts_per_tok": per_token,
        "moe_intermediate_size": dense["intermediate_size"],
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def mixture(dense: dict[str, torch.Tensor], num_experts: int, noise: float, seed: int) -> dict[str, torch.Tensor]:
    """The mixture's tensors by name; the same for the same arguments."""
    random = torch.Generator().manual_seed(seed)
    tensors = {name: tensor for name, tensor in dense.items() if ".mlp." not in name}
    for name in sorted(dense.keys() - tensors.keys()):
        layer, _, projection = name.removesuffix(".weight").rpartition(".")
        weight = dense[name]
        for expert in range(num_experts):
            spread = noise * weight.std() * torch.randn(weight.shape, generator=random)
            tensors[f"{layer}.experts.{expert}.{projection}.weight"] = (weight + spread).to(weight.dtype)
        if projection == PROJECTIONS[-1]:  # one router a layer, as wide as what the experts give
            scores = ROUTER_STD * torch.randn(num_experts, weight.shape[0], generator=random)
            tensors[f"{layer}.gate.weight"] = scores.to(weight.dtype)
    return tensors


if __name__ == "__main__":
    main()
