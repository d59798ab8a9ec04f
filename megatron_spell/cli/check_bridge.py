"""`megatron-spell check-bridge`: are trainers' and engines' weights equal; or, dry, what a refresh would take.

Heavy imports happen inside; a dry run needs none of them.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_spell.cli.refusal import refuse
from megatron_spell.cli.run_file import Overrides, RunFile, load_run, rank_under_torchrun
from megatron_spell.config.schema import RunConfig

if TYPE_CHECKING:
    from megatron_spell.train.bridge_check import Report
    from megatron_spell.train.bridge_forecast import Forecast, Layout

DIFFERENT, NOT_COMPARED = 1, 3
TRAINER_AXES = ("tp", "pp", "dp", "cp", "ep", "etp", "vpp")
ENGINE_FIELDS = {"tp": "tensor_parallel", "pp": "pipeline_parallel", "dp": "data_parallel", "ep": "expert_parallel"}

Full = Annotated[bool, typer.Option("--full", help="Compare every element instead of sampled boxes")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only plan, from the settings and config.json: no weights, no GPU")
]
HardwareFile = Annotated[
    Path | None, typer.Option("--hardware", help="Table of links and copies to predict with, in place of the package's")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs")]
TrainerMesh = Annotated[
    str | None, typer.Option("--mesh", help="Trainers in place of the file's, such as tp=4,pp=2,dp=4,ep=8,etp=1")
]
Engines = Annotated[int | None, typer.Option("--engines", help="Number of engines in place of the file's")]
EngineAxes = Annotated[
    str | None, typer.Option("--engine-mesh", help="Of each engine in place of the file's, such as tp=4 or tp=8,ep")
]
GpusPerNode = Annotated[int, typer.Option("--gpus-per-node", min=1, help="GPUs that NVLink joins; for a dry run")]

Seed = Annotated[int, typer.Option("--seed", min=0, help="Which boxes are sampled, without --full")]


def check_bridge(
    run: RunFile,
    full: Full = False,
    dry_run: DryRun = False,
    hardware: HardwareFile = None,
    as_json: AsJson = False,
    mesh: TrainerMesh = None,
    engines: Engines = None,
    engine_mesh: EngineAxes = None,
    gpus_per_node: GpusPerNode = 8,
    seed: Seed = 0,
    overrides: Overrides = None,
) -> None:
    """Start trainers and engines, refresh once and compare their weights; with --dry-run only plan.

    Exit code 0: all is equal (or covered); 1: there are differences; 2: the settings cannot be used; 3: trainers and
    engines could not be compared.
    """
    chosen = [*(overrides or ()), *layout_overrides(mesh, engines, engine_mesh)]
    config = load_run(run, chosen)
    if dry_run:
        raise typer.Exit(_dry_run(config, hardware, gpus_per_node, as_json=as_json))
    raise typer.Exit(_live(config, seed, full=full, as_json=as_json))


def layout_overrides(mesh: str | None, engines: int | None, engine_mesh: str | None) -> list[str]:
    """As `--set` would say it. An axis that a mesh does not name is 1."""
    found: list[str] = []
    if mesh is not None:
        sizes = axes("--mesh", mesh, TRAINER_AXES)
        found += [f"policy.mesh.{axis}={sizes.get(axis, 'null' if axis == 'etp' else '1')}" for axis in TRAINER_AXES]
    if engines is not None:
        found.append(f"rollout.engines={engines}")
    if engine_mesh is not None:
        sizes = axes("--engine-mesh", engine_mesh, tuple(ENGINE_FIELDS), flags=("ep",))
        found += [f"rollout.{field}={sizes.get(axis, '1')}" for axis, field in ENGINE_FIELDS.items() if axis != "ep"]
        found.append(f"rollout.expert_parallel={'true' if 'ep' in sizes else 'false'}")
    return found


def axes(option: str, text: str, known: tuple[str, ...], flags: tuple[str, ...] = ()) -> dict[str, str]:
    """Axis -> size of "tp=4,pp=2"; one of `flags` stands without a size."""
    found: dict[str, str] = {}
    for part in text.split(","):
        axis, equals, size = part.strip().partition("=")
        if axis not in known or axis in found or (axis in flags) == bool(equals) or (equals and not size.isdigit()):
            shape = ", ".join(axis if axis in flags else f"{axis}=N" for axis in known)
            refuse(f"{option} {text}: {part.strip()!r} does not belong there; give some of {shape}, each once")
        found[axis] = size
    return found


def _dry_run(config: RunConfig, hardware: Path | None, gpus_per_node: int, *, as_json: bool) -> int:
    from megatron_spell.bridge.boxes import BridgeError
    from megatron_spell.config.hardware import HardwareError, load_hardware
    from megatron_spell.config.model_shape import UnknownModel
    from megatron_spell.train.bridge_forecast import Layout, forecast, layout_faults

    try:
        table, layout = load_hardware(hardware), Layout.of(config, gpus_per_node)
    except HardwareError as error:
        refuse(f"--hardware {error}")
    except UnknownModel as error:
        refuse(f"model.path = {config.model.path}: {error}; give a folder with the config.json of a known model")
    faults = layout_faults(config, layout)
    if faults:
        refuse(*faults)
    try:
        found = forecast(layout, table)
    except (BridgeError, ValueError) as error:
        refuse(str(error))
    _tell(layout, found, as_json=as_json)
    return DIFFERENT if found.faults or found.num_tensors < found.num_model_tensors else 0


def _tell(layout: "Layout", found: "Forecast", *, as_json: bool) -> None:
    peak_bytes = peak_memory_bytes()
    if as_json:
        typer.echo(json.dumps(layout.as_json() | found.as_json() | {"peak_memory_bytes": peak_bytes}, indent=2))
        return
    from megatron_spell.cli.check_bridge_tables import console_for_tables, forecast_tables

    console = console_for_tables()
    for table in forecast_tables(layout, found, peak_bytes):
        console.print(table)
    for fault in found.faults:
        typer.echo(fault)


def _live(config: RunConfig, seed: int, *, full: bool, as_json: bool) -> int:
    from megatron_spell.train.bridge_check import launch_check, settings_for_check
    from megatron_spell.train.launch import check

    chosen, rank = settings_for_check(config), rank_under_torchrun()
    faults = check(chosen, resume=False)
    if faults:
        refuse(*faults)
    report = launch_check(chosen, full=full, seed=seed, quiet=as_json, rank=rank)
    if rank:
        return 0
    if report is None:
        return NOT_COMPARED
    _tell_report(report, as_json=as_json)
    return DIFFERENT if report.differences else 0


def _tell_report(report: "Report", *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
        return
    from megatron_spell.cli.check_bridge_tables import comparison_table, console_for_tables, summary

    console_for_tables().print(comparison_table(report))
    for difference in report.differences:
        typer.echo(str(difference))
    typer.echo(summary(report))


def peak_memory_bytes() -> int:
    """Most that this process has had in memory so far."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
