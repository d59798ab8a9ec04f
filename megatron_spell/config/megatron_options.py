"""Native Megatron options under `policy.megatron`, checked against the fields of the installed megatron-core.

Its sources are parsed and not imported: checking a run loads no heavy library.
"""

import ast
import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from megatron_spell.config.megatron_refusals import GPU_ONLY, REFUSALS
from megatron_spell.config.policy_sections import PolicySection

Fields = Mapping[str, ast.expr]  # annotations by name

# Where megatron-core 0.16 to 0.19 defines the fields of each section, base class first.
HOMES = {
    "transformer": (
        ("model_parallel_config.py", "ModelParallelConfig"),
        ("transformer/transformer_config.py", "TransformerConfig"),
    ),
    "ddp": (("distributed/distributed_data_parallel_config.py", "DistributedDataParallelConfig"),),
    "optimizer": (("optimizer/optimizer_config.py", "OptimizerConfig"),),
}
PLAIN = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,), "list": (list,), "List": (list,)}


def option_faults(policy: PolicySection, *, on_cpu: bool) -> Iterator[str]:
    """One line for every option that this run cannot have, naming field, value and way out."""
    given = policy.megatron.model_dump()
    if not any(given.values()):
        return
    folder = installed_folder()
    if folder is None:
        yield "policy.megatron: megatron-core is not installed here, so its options are unknown; install it"
        return
    for section, options in given.items():
        for name, value in options.items():
            fault = _fault_of(section, name, value, folder) or (_fault_on_cpu(section, name, value) if on_cpu else None)
            if fault:
                yield f"policy.megatron.{section}.{name} = {value}: {fault}"
    if not on_cpu:
        yield from _offload_faults(policy)


def installed_folder() -> Path | None:
    """The folder of `megatron.core`, found without importing it (`megatron` itself is a mere namespace)."""
    spec = importlib.util.find_spec("megatron")
    folders = [Path(place, "core") for place in (spec.submodule_search_locations or ())] if spec else []
    return next((folder for folder in folders if (folder / "package_info.py").is_file()), None)


@cache
def known_fields(section: str, folder: Path) -> Fields:
    """The fields that a section's dataclass has in the megatron-core under `folder`."""
    found: dict[str, ast.expr] = {}
    for file, class_name in HOMES[section]:
        module = ast.parse((folder / file).read_text(encoding="utf-8"))
        body = next(n.body for n in module.body if isinstance(n, ast.ClassDef) and n.name == class_name)
        for line in body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                found[line.target.id] = line.annotation
    return {name: annotation for name, annotation in found.items() if not name.startswith("_")}


def takes(annotation: ast.expr, value: object) -> bool:
    """Whether a value from a settings file fits an annotation; Python objects (functions, enums) never do."""
    match annotation:
        case ast.Constant(None):
            return value is None
        case ast.Name(name):
            # True is an int to Python, but not to a reader
            return isinstance(value, PLAIN.get(name, ())) and (name == "bool" or not isinstance(value, bool))
        case ast.BinOp(left, ast.BitOr(), right):
            return takes(left, value) or takes(right, value)
        case ast.Subscript(ast.Name(name), inner):
            return _takes_subscript(name, inner.elts if isinstance(inner, ast.Tuple) else [inner], value)
    return False


def _takes_subscript(name: str, inner: list[ast.expr], value: object) -> bool:
    match name:
        case "Optional":
            return value is None or takes(inner[0], value)
        case "Union":
            return any(takes(choice, value) for choice in inner)
        case "Literal":
            return any(isinstance(c, ast.Constant) and c.value == value for c in inner)
        case "list" | "List" | "tuple" | "Tuple":
            kinds = [kind for kind in inner if not (isinstance(kind, ast.Constant) and kind.value is Ellipsis)]
            return isinstance(value, list) and all(any(takes(kind, item) for kind in kinds) for item in value)
    return False


def _fault_of(section: str, name: str, value: object, folder: Path) -> str | None:
    for refusal in REFUSALS[section]:
        if any(fnmatchcase(name, pattern) for pattern in refusal.names):
            return f"{refusal.why}; {refusal.way_out}"
    fields = known_fields(section, folder)
    if name not in fields:
        return _unknown(section, name, folder)
    if not takes(fields[name], value):
        return f"megatron-core takes {ast.unparse(fields[name])} here; give such a value or leave it out"
    return None


def _unknown(section: str, name: str, folder: Path) -> str:
    for other in HOMES:
        if name in known_fields(other, folder):
            return f"is no option of this section; put it under policy.megatron.{other}"
    close = difflib.get_close_matches(name, known_fields(section, folder), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"see the fields of {HOMES[section][-1][1]}"
    return f"the installed megatron-core has no such option; {hint}"


def _fault_on_cpu(section: str, name: str, value: object) -> str | None:
    if value and any(fnmatchcase(name, pattern) for pattern in GPU_ONLY[section]):
        return "needs a GPU; leave it out"
    return None


def _offload_faults(policy: PolicySection) -> Iterator[str]:
    if not policy.megatron.optimizer.get("optimizer_cpu_offload"):
        return
    field = "policy.megatron.optimizer.optimizer_cpu_offload = True"
    if importlib.util.find_spec("transformer_engine") is None:
        yield f"{field}: Megatron offloads with Transformer Engine only, which is not installed here; leave it out"
    if not policy.distributed_optimizer:
        yield f"{field}: Megatron offloads the distributed optimizer only; set policy.distributed_optimizer to true"
    if policy.dtype != "bfloat16":
        # Megatron then keeps no float32 copies apart, and misses weights that are loaded after the start.
        yield f"{field}: is offered with float32 copies of bfloat16 weights only; set policy.dtype to bfloat16"
