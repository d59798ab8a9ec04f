"""Rules that hold between sections, and between the settings and the model. All violations are found at once.

Nothing here opens a store, a port or a heavy library; that is `train/preflight.py`.
"""

from collections.abc import Iterator
from functools import reduce
from importlib.util import find_spec

from megatron_spell.config.engine_rules import engine_faults
from megatron_spell.config.layout_rules import layout_faults
from megatron_spell.config.megatron_options import option_faults
from megatron_spell.config.model_shape import ModelShape, UnknownModel
from megatron_spell.config.schema import RunConfig
from megatron_spell.types.play import Role

# vLLM 0.32 (v1/attention/backends/cpu_attn.py) dies at its first forward on any other; its CUDA backends know more.
CPU_ENGINE_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
PROMPT_OVERHEAD_TOKENS = 64  # chat template, instructions and question, at the very least


def violations(config: RunConfig, *, on_cpu: bool = True) -> list[str]:
    """One line per broken rule, each naming field, value and way out; empty when the run can start."""
    faults = [*_play(config), *_lengths(config), *_suite(config), *_watch(config), *_files(config)]
    faults += [*_backend(config, on_cpu), *option_faults(config.policy, on_cpu=on_cpu)]
    try:
        shape = ModelShape.load(config.model.path)
    except UnknownModel as error:
        return [*faults, _fault(config, "model.path", str(error), "give a Hugging Face folder of a known model")]
    faults += [*map(str, layout_faults(shape, config.policy)), *engine_faults(shape, config, on_cpu=on_cpu)]
    return [*faults, *_engine_fits(config, shape, on_cpu)]


def _fault(config: RunConfig, field: str, why: str, way_out: str) -> str:
    value = reduce(getattr, field.split("."), config)
    return f"{field} = {value}: {why}; {way_out}"


def _play(config: RunConfig) -> Iterator[str]:
    play = config.play
    if play.min_questions > play.questions_per_step:
        why = f"is more than play.questions_per_step = {play.questions_per_step}"
        yield _fault(config, "play.min_questions", why, "lower it")
    if play.max_draws_per_step < play.questions_per_step:
        why = f"a step of {play.questions_per_step} questions needs at least as many draws"
        yield _fault(config, "play.max_draws_per_step", why, "raise it")
    if not any(weight > 0 for weight in config.data.task_weights.values()):
        yield "data.task_weights: every task has weight 0; give at least one a positive weight"
    if play.votes_per_answer == 0 and Role.VERIFIER in config.algo.train_roles:
        yield _fault(config, "play.votes_per_answer", "nobody votes", "take verifier out of algo.train_roles")
    if play.full_votes_share == 0 and Role.VERIFIER in config.algo.train_roles:
        why = "no group would have all the votes that training takes"
        yield _fault(config, "play.full_votes_share", why, "raise it, or take verifier out of algo.train_roles")
    if play.questions is not None and Role.QUESTIONER in config.algo.train_roles:
        yield _fault(config, "play.questions", "nothing is asked", "take questioner out of algo.train_roles")
    if not config.algo.train_roles:
        yield _fault(config, "algo.train_roles", "no role is trained", "name questioner, responder or verifier")


def _lengths(config: RunConfig) -> Iterator[str]:
    if config.policy.max_bin_tokens < config.policy.bin_multiple:
        why = f"the mesh cuts a bin into {config.policy.bin_multiple} equal pieces"
        yield _fault(config, "policy.max_bin_tokens", why, "raise it")
    length, answer = config.curriculum.length, config.sampling.max_tokens.responder
    if length.start_tokens > length.max_tokens:
        why = f"is above curriculum.length.max_tokens = {length.max_tokens}"
        yield _fault(config, "curriculum.length.start_tokens", why, "lower it")
    if length.lower_below >= length.raise_above:
        why = f"is not under curriculum.length.raise_above = {length.raise_above}, so the schedule would swing for ever"
        yield _fault(config, "curriculum.length.lower_below", why, "lower it")
    longest = length.max_tokens + answer + PROMPT_OVERHEAD_TOKENS
    if longest > config.rollout.max_model_len:
        why = (
            f"documents of curriculum.length.max_tokens = {length.max_tokens} with an answer of"
            f" sampling.max_tokens.responder = {answer} take {longest} tokens"
        )
        yield _fault(config, "rollout.max_model_len", why, "raise it or lower those")


def _suite(config: RunConfig) -> Iterator[str]:
    suite, answer = config.evaluation.suite, config.sampling.max_tokens.responder
    if suite.files and suite.max_input_tokens + answer > config.rollout.max_model_len:
        why = (
            f"with an answer of sampling.max_tokens.responder = {answer} it is more than rollout.max_model_len ="
            f" {config.rollout.max_model_len}"
        )
        yield _fault(config, "evaluation.suite.max_input_tokens", why, "lower it or raise that")


def _backend(config: RunConfig, on_cpu: bool) -> Iterator[str]:
    if config.policy.backend == "transformer_engine" and (on_cpu or find_spec("transformer_engine") is None):
        why = "there is no GPU here" if on_cpu else "Transformer Engine is not installed here"
        yield _fault(config, "policy.backend", why, "use auto or local")


def _watch(config: RunConfig) -> Iterator[str]:
    if config.watch.min_surprisal >= config.watch.max_surprisal:
        why = f"is not under watch.max_surprisal = {config.watch.max_surprisal}"
        yield _fault(config, "watch.min_surprisal", why, "lower it")


def _files(config: RunConfig) -> Iterator[str]:
    if not config.data.store.is_file():
        way_out = f"make it with `megatron-spell data build SOURCE... --out {config.data.store}`"
        yield _fault(config, "data.store", "there is no such file", way_out)
    if config.play.templates is not None and not config.play.templates.is_dir():
        yield _fault(config, "play.templates", "there is no such folder", "leave it out for the package's templates")
    if config.play.questions is not None and not config.play.questions.is_file():
        yield _fault(config, "play.questions", "there is no such file", "leave it out to have questions asked")
    if config.evaluation.questions is not None and not config.evaluation.questions.is_file():
        yield _fault(
            config, "evaluation.questions", "there is no such file", "leave it out to train without evaluation"
        )


def _engine_fits(config: RunConfig, shape: ModelShape, on_cpu: bool) -> Iterator[str]:
    if on_cpu and shape.head_dim not in CPU_ENGINE_HEAD_DIMS:
        known = ", ".join(map(str, CPU_ENGINE_HEAD_DIMS))
        yield _fault(
            config, "model.path", f"vLLM on a CPU cannot serve its head_dim {shape.head_dim}", f"it serves {known}"
        )
    if config.policy.moe.routing_replay != "never" and (on_cpu or shape.experts is None):
        why = "vLLM on a CPU does not return expert choices" if shape.experts else "the model has no experts"
        yield _fault(config, "policy.moe.routing_replay", why, "set it to never")
    if config.rollout.max_model_len > shape.max_positions:
        why = f"the model has {shape.max_positions} positions"
        yield _fault(config, "rollout.max_model_len", why, "lower it to that")
