"""Every setting of a run. Defaults are the paper's values unless the comment says otherwise; frozen once loaded.

Fields are explained in docs/config.md. Rules that span sections live in `check.py`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from megatron_spell.layout.mesh import Mesh
from megatron_spell.types.play import Role, TaskName

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Unknown keys are errors; nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelSection(Section):
    path: Path  # Hugging Face folder: config.json, safetensors, tokenizer
    enable_thinking: bool | None = None  # passed to the chat template where it knows it


class DataSection(Section):
    store: Path  # HDF5 token store made by `megatron-spell data build`
    task_weights: dict[TaskName, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = dict.fromkeys(TaskName, 1.0)


class PlaySection(Section):
    questions_per_step: PositiveInt = 128
    min_questions: PositiveInt = 16  # a step that finds fewer within its draws ends the run with an error
    max_draws_per_step: PositiveInt = 4800  # the reference's ten passes of 480
    max_rounds_in_flight: PositiveInt = 64
    documents_shown: PositiveInt = 5  # m: what the questioner sees at first
    new_documents: PositiveInt = 5  # added to the remembered ones when there is history
    answers_per_question: Annotated[int, Field(ge=2)] = 8  # G
    votes_per_answer: PositiveInt = 8
    ground_samples: NonNegativeInt = 4  # k blind answers; 0 switches the ground check off
    ground_margin: Fraction = 0.25  # ungrounded when the blind solve rate reaches guess rate + margin
    max_answer_tokens: PositiveInt = 40  # a longer reference answer is unusable
    templates: Path | None = None  # folder of templates; None: the package's own


class MaxTokens(Section):
    questioner: PositiveInt = 4096
    responder: PositiveInt = 4096
    verifier: PositiveInt = 4096

    def of(self, role: Role) -> int:
        return getattr(self, role.value)


class SamplingSection(Section):
    temperature: PositiveFloat = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_tokens: MaxTokens = MaxTokens()


class RewardSection(Section):
    frontier_sigma: PositiveFloat = 0.5 / 3
    ungrounded: float = -0.5
    bad_format: float = -1.0
    numeric_tolerance: Fraction = 0.0015


class AlgoSection(Section):
    loss: Literal["per_role", "token_mean"] = "per_role"
    train_roles: tuple[Role, ...] = tuple(Role)
    verifier_groups_per_step: NonNegativeInt = 16
    failed_question_ratio: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    importance_cap: PositiveFloat = 2.0  # truncated importance weights; used only with max_staleness > 0
    max_staleness: NonNegativeInt = 0
    advantage_epsilon: PositiveFloat = 1e-6


class LengthSection(Section):
    """The responder's document budget: rises when the moving solve rate passes `raise_above`, falls under `lower_below`."""

    enabled: bool = True
    start_tokens: PositiveInt = 4096
    max_tokens: PositiveInt = 32768
    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    raise_above: Fraction = 0.6
    lower_below: Fraction = 0.2
    window: PositiveInt = 256  # rounds in the moving mean


class CurriculumSection(Section):
    memory_size: NonNegativeInt = 3  # L, per (set, task); 0 switches history off
    duplicate_similarity: Fraction = 0.8  # token-set similarity from which a remembered question counts as the same
    length: LengthSection = LengthSection()


class MeshSection(Section):
    tp: PositiveInt = 1
    pp: PositiveInt = 1
    dp: PositiveInt = 1
    cp: PositiveInt = 1
    ep: PositiveInt = 1
    etp: PositiveInt = 1
    vpp: PositiveInt = 1

    def mesh(self) -> Mesh:
        return Mesh(**self.model_dump())


class OptimizerSection(Section):
    lr: PositiveFloat = 2e-6
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01  # never on norms and biases
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: PositiveFloat = 1e-8
    clip_grad: PositiveFloat = 1.0
    warmup_steps: NonNegativeInt = 0


class PolicySection(Section):
    mesh: MeshSection = MeshSection()
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_bin_tokens: PositiveInt = 32768
    threads_per_rank: NonNegativeInt = 0  # torch threads on a CPU; 0: cores / ranks on this machine
    timeout_s: PositiveFloat = 1800.0  # longest wait of one rank for another
    optimizer: OptimizerSection = OptimizerSection()


class RolloutSection(Section):
    engines: PositiveInt = 1
    tensor_parallel: PositiveInt = 1
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_model_len: PositiveInt = 40960
    max_num_seqs: PositiveInt = 256
    kv_cache_gib: PositiveFloat = 4.0
    enforce_eager: bool = False
    start_timeout_s: PositiveFloat = 600.0
    request_timeout_s: PositiveFloat = 1800.0


class BridgeSection(Section):
    transport: Literal["gloo"] = "gloo"
    bucket_mib: PositiveFloat = 256.0
    timeout_s: PositiveFloat = 300.0


class ClusterSection(Section):
    ray_address: str | None = None  # None: Ray starts itself on this machine; "auto" or host:port joins a cluster
    master_port: Annotated[int, Field(ge=0, le=65535)] = 0  # rendezvous of the trainers; 0: any free port
    start_timeout_s: PositiveFloat = 300.0


class TrustSection(Section):
    max_log_prob_diff: PositiveFloat = 0.5  # engine against policy, per token; beyond it the run stops
    max_log_prob_diff_mean: PositiveFloat = 0.05


class EvaluationSection(Section):
    questions: Path | None = None  # JSONL: set_id, task, question, gold; asked before and after training
    samples: PositiveInt = 8
    every: NonNegativeInt = 0  # also every so many steps; 0: only before and after
    document_tokens: NonNegativeInt = 0  # documents shown up to this budget; 0: the whole set


class CheckpointSection(Section):
    every: PositiveInt = 10
    keep: PositiveInt = 2


class ObserveSection(Section):
    sinks: tuple[Literal["console", "jsonl", "tensorboard"], ...] = ("console", "jsonl", "tensorboard")
    rounds: bool = True  # write rounds/step_NNNNNN.jsonl


class RunConfig(Section):
    name: str
    run_folder: Path
    seed: NonNegativeInt = 0
    steps: PositiveInt = 70
    model: ModelSection
    data: DataSection
    play: PlaySection = PlaySection()
    sampling: SamplingSection = SamplingSection()
    rewards: RewardSection = RewardSection()
    algo: AlgoSection = AlgoSection()
    curriculum: CurriculumSection = CurriculumSection()
    policy: PolicySection = PolicySection()
    rollout: RolloutSection = RolloutSection()
    bridge: BridgeSection = BridgeSection()
    cluster: ClusterSection = ClusterSection()
    trust: TrustSection = TrustSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    observe: ObserveSection = ObserveSection()
