"""Everything that can be found wrong before a process starts: one line for each fault, all at once."""

from collections.abc import Iterator
from pathlib import Path

from megatron_spell.cluster.handles import ClusterError
from megatron_spell.cluster.local import available_memory_bytes, check_port
from megatron_spell.config.check import violations
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.data.questions import QuestionsError, load_questions
from megatron_spell.data.store import StoreError, TokenStore
from megatron_spell.evaluation.preparing import Unprepared, chosen_records
from megatron_spell.roles.templates import TemplateError, Templates
from megatron_spell.text.tokenizer import Tokenizer, TokenizerError
from megatron_spell.train.checkpoints import Checkpoints, all_but_tensors, none_is_whole
from megatron_spell.train.run_folder import RunFolder
from megatron_spell.train.saved_state import find_mismatch

# Measured on the quickstart: what a process takes before it holds any weights.
TRAINER_GIB = 0.6
ENGINE_GIB = 1.8
RAY_GIB = 0.6
# fp32 weights and gradients, and two Adam moments, of the policy; one copy of the weights in each engine.
BYTES_PER_PARAMETER, MOMENT_BYTES_PER_PARAMETER = 8, 8
ENGINE_BYTES_PER_PARAMETER = 4
# Weights, main weights where they differ, and moments, waiting to be written.
SNAPSHOT_BYTES_PER_PARAMETER = {"float32": 4 + 8, "bfloat16": 2 + 4 + 8}


def faults(config: RunConfig, *, on_cpu: bool) -> list[str]:
    """Why this run cannot start; empty when it can."""
    found = violations(config, on_cpu=on_cpu)
    if found:
        return found
    found = [*_store_and_tokenizer(config), *_words(config), *_questions(config), *_suite(config)]
    found += _earlier_run(config)
    found += _port(config)
    return found + (_memory(config) if on_cpu else [])


def _store_and_tokenizer(config: RunConfig) -> Iterator[str]:
    try:
        tokenizer = Tokenizer.load(config.model.path)
    except TokenizerError as error:
        yield f"model.path = {config.model.path}: {error}"
        return
    try:
        with TokenStore.open(config.data.store) as store:
            if store.tokenizer_fingerprint != tokenizer.fingerprint:
                yield (
                    f"data.store = {config.data.store}: was built with another tokenizer than model.path ="
                    f" {config.model.path}; build it again with `megatron-spell data build`"
                )
            if not store.set_ids("train"):
                yield f"data.store = {config.data.store}: holds no training set; build it from more documents"
    except StoreError as error:
        yield f"data.store = {config.data.store}: {error}"


def _words(config: RunConfig) -> Iterator[str]:
    try:
        Templates.load(config.play.templates)
    except TemplateError as error:
        yield f"play.templates = {config.play.templates}: {error}"


def _questions(config: RunConfig) -> Iterator[str]:
    yield from _known_questions(config, "evaluation.questions", config.evaluation.questions, held_out=True)
    yield from _known_questions(config, "play.questions", config.play.questions, held_out=False)


def _known_questions(config: RunConfig, field: str, path: Path | None, *, held_out: bool) -> Iterator[str]:
    """Sets that nobody knows; held-out ones count as known only where nothing is trained on them."""
    if path is None:
        return
    try:
        asked = load_questions(path)
        with TokenStore.open(config.data.store) as store:
            known = {*store.set_ids("train"), *(store.set_ids("heldout") if held_out else ())}
    except QuestionsError as error:
        yield f"{field} = {path}: {error}"
    except StoreError:
        return  # reported with the store itself
    else:
        unknown = sorted({q.set_id for q in asked} - known)
        if unknown:
            split = "" if held_out else "among the training sets of "
            why = f"set {unknown[0]} is not in {split}data.store = {config.data.store}; write them from this store"
            yield f"{field} = {path}: {why}"


def _suite(config: RunConfig) -> Iterator[str]:
    suite = config.evaluation.suite
    try:
        if suite.files:
            chosen_records(suite.files, limit=suite.limit)
    except Unprepared as error:
        yield from (f"evaluation.suite.files: {line}" for line in error.lines)


def _earlier_run(config: RunConfig) -> Iterator[str]:
    checkpoints = Checkpoints(RunFolder(config.run_folder).checkpoints, config.checkpoint.keep)
    checkpoint, torn = checkpoints.latest(hashed=all_but_tensors)  # rank 0 compares the tensors' before it loads them
    if torn and checkpoint is None:
        yield f"run_folder = {config.run_folder}: {none_is_whole(checkpoints, torn)}"
    mismatch = checkpoint and find_mismatch(checkpoint, config)
    if mismatch:
        yield f"run_folder = {config.run_folder}: {mismatch}; give another run_folder"


def _port(config: RunConfig) -> list[str]:
    port = config.cluster.master_port
    try:
        if port:
            check_port(port)
    except ClusterError as error:
        return [f"cluster.master_port = {port}: {error}"]
    return []


def _memory(config: RunConfig) -> list[str]:
    needed_gib, free_gib = memory_needed_gib(config), available_memory_bytes() / 2**30
    if needed_gib <= free_gib:
        return []
    return [
        f"rollout.kv_cache_gib = {config.rollout.kv_cache_gib}: the run needs about {needed_gib:.1f} GiB and this"
        f" machine has {free_gib:.1f} GiB free; lower it, rollout.engines or policy.mesh"
    ]


def memory_needed_gib(config: RunConfig) -> float:
    """A low estimate of what trainers, engines and Ray take together on one machine."""
    shape, mesh = ModelShape.load(config.model.path), config.policy.mesh.mesh()
    policy_bytes = 0
    replicas_of_experts = mesh.tp * mesh.cp * mesh.dp // (mesh.ep * mesh.expert_tp)
    for num_parameters, replicas in (
        (shape.num_dense_parameters, mesh.dp * mesh.cp),
        (shape.num_expert_parameters, replicas_of_experts),
    ):
        copies_of_moments = 1 if config.policy.distributed_optimizer else replicas
        policy_bytes += num_parameters * replicas * BYTES_PER_PARAMETER
        policy_bytes += num_parameters * copies_of_moments * MOMENT_BYTES_PER_PARAMETER
    if config.checkpoint.asynchronous:  # one copy over all ranks of what a checkpoint holds
        policy_bytes += shape.num_parameters * SNAPSHOT_BYTES_PER_PARAMETER[config.policy.dtype]
    trainers = mesh.world_size * TRAINER_GIB + policy_bytes / 2**30
    engine = ENGINE_GIB + config.rollout.kv_cache_gib + shape.num_parameters * ENGINE_BYTES_PER_PARAMETER / 2**30
    return trainers + config.rollout.engines * engine + RAY_GIB
