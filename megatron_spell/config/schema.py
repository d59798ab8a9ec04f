"""Every setting of a run. Defaults are the paper's values unless the comment says otherwise; frozen once loaded.

Fields are explained in docs/config.md. Rules that span sections live in `check.py`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from megatron_spell.config.policy_sections import PolicySection
from megatron_spell.config.section import (
    AboveOne,
    BelowOne,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.types.play import Role, TaskName
from megatron_spell.types.signs import Sign


class ModelSection(Section):
    path: Path  # Hugging Face folder: config.json, safetensors, tokenizer
    enable_thinking: bool | None = None  # passed to the chat template where it knows it


class DataSection(Section):
    store: Path  # HDF5 token store made by `megatron-spell data build`
    task_weights: dict[TaskName, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = dict.fromkeys(
        TaskName, 1.0
    )  # how often each task is drawn; 0 leaves a task out


class PlaySection(Section):
    questions_per_step: PositiveInt = 128  # usable questions that make a step
    min_questions: PositiveInt = 16  # a step that finds fewer within its draws ends the run with an error
    max_draws_per_step: PositiveInt = 4800  # the reference's ten passes of 480
    max_rounds_in_flight: PositiveInt = 96  # rounds played at the same time, at most; fills 256 seats of an engine
    documents_shown: PositiveInt = 5  # m: what the questioner sees at first
    new_documents: PositiveInt = 5  # added to the remembered ones when there is history
    answers_per_question: Annotated[int, Field(ge=2)] = 8  # G
    votes_per_answer: NonNegativeInt = 8  # V; 0: no verifier, the rule alone decides
    ground_samples: NonNegativeInt = 4  # k blind answers; 0 switches the ground check off
    ground_margin: Fraction = 0.25  # ungrounded when the blind solve rate reaches the task's guess rate and this more
    ground_margin_of_choice: Fraction = (
        0.5  # of multiple_choice: 3 of 4 guesses are right in 5 % of cases, 2 of 4 in 26 %
    )
    max_answer_tokens: PositiveInt = 40  # a longer reference answer is unusable
    full_votes_share: Fraction | None = (
        None  # rounds with all V votes; others ask no more once settled; null: what verifier_groups_per_step needs
    )
    judge_right_share: Fraction = (
        0.25  # of those rounds, the ones in which a right answer is judged too, so that the verifier sees both
    )
    templates: Path | None = None  # folder of templates; None: the package's own
    questions: Path | None = (
        None  # JSONL of known questions (as evaluation.questions) to play instead of asking: RL from given answers
    )

    def ground_margin_of(self, task: TaskName) -> float:
        return self.ground_margin_of_choice if task is TaskName.MULTIPLE_CHOICE else self.ground_margin


class MaxTokens(Section):
    questioner: PositiveInt = 4096  # longest output
    responder: PositiveInt = 4096  # longest output
    verifier: PositiveInt = 4096  # longest output

    def of(self, role: Role) -> int:
        return getattr(self, role.value)


class SamplingSection(Section):
    temperature: Annotated[float, Field(gt=0, le=2)] = 0.7  # of all three roles; vLLM takes no more than 2
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95  # of all three roles
    max_tokens: MaxTokens = MaxTokens()


class RewardSection(Section):
    frontier_sigma: PositiveFloat = 0.5 / 3  # width of the question's reward around a solve rate of one half
    ungrounded: float = -0.5  # of a question solved without the documents
    bad_format: float = -1.0  # of a question that cannot be asked
    numeric_tolerance: Fraction = 0.0015  # relative, for math_qa


class ImportanceSection(Section):
    """Used with algo.max_staleness > 0 or `always`. A ratio is the policy's probability of a token by the engine's."""

    always: bool = False  # weigh also at max_staleness 0, where this section is not used otherwise
    form: Literal["token", "sequence_mean", "sequence_product"] = (
        "token"  # what weighs a token: its own ratio, its row's geometric mean, or its row's product
    )
    cap: PositiveFloat = 2.0  # largest importance weight
    mask_token_low: BelowOne = 1e-4  # a token with a smaller ratio is not trained on; 0: no limit
    mask_token_high: AboveOne | None = 1e4  # likewise with a larger one; null: no limit
    mask_row_low: BelowOne = 0.2  # a row whose ratios have a smaller geometric mean is not trained on; 0: no limit
    mask_row_high: AboveOne | None = 5.0  # likewise with a larger one; null: no limit


class AlgoSection(Section):
    loss: Literal["per_role", "token_mean"] = "per_role"  # how tokens are weighed, see docs/selfplay.md
    train_roles: tuple[Role, ...] = tuple(Role)  # roles whose outputs are trained on
    role_weights: dict[Role, NonNegativeFloat] = {}  # of each role's loss; 1 where not named, as in the paper
    verifier_groups_per_step: NonNegativeInt = 16  # vote groups trained on, at most
    failed_question_ratio: Annotated[float, Field(ge=0, allow_inf_nan=False)] = (
        1.0  # failed questions trained on for each usable one
    )
    clip_low: PositiveFloat | None = 0.2  # of the importance ratio below 1; null: no clip; on-policy the ratio is 1
    clip_high: PositiveFloat | None = 0.2  # likewise above 1
    verifier_needs_rule: bool = (
        True  # train on vote groups only where the majority is the rule's verdict; else the verifier drifts to yes
    )
    max_staleness: NonNegativeInt = (
        0  # steps that the weights which wrote a row may lie behind; above 0 rounds go on while the policy trains
    )
    importance: ImportanceSection = ImportanceSection()
    advantage_epsilon: PositiveFloat = 1e-6  # added to the standard deviation

    @property
    def weighs_importance(self) -> bool:
        """Whether tokens are weighed by how far the policy is from the engine that wrote them."""
        return self.max_staleness > 0 or self.importance.always


class LengthSection(Section):
    """The document budget: rises when the moving solve rate passes `raise_above`, falls when under `lower_below`."""

    enabled: bool = True  # off: the responder always sees the whole set, and nothing of other sets
    distractors_from_other_sets: bool = True  # what a set's own documents leave of the budget is filled from others
    start_tokens: PositiveInt = 4096  # first budget
    max_tokens: PositiveInt = 32768  # last budget
    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0  # between one budget and the next
    raise_above: Fraction = 0.6  # solve rate
    lower_below: Fraction = 0.2  # solve rate
    window: PositiveInt = 256  # rounds in the moving mean


class TaskBalanceSection(Section):
    """Tasks with fewer usable questions are drawn more, so that what is trained on keeps to `data.task_weights`."""

    enabled: bool = False  # off: tasks are drawn by data.task_weights
    window: PositiveInt = 256  # rounds of a task over which its usable share is smoothed
    min_factor: Annotated[float, Field(gt=0, le=1)] = 0.25  # a task's weight is multiplied by no less
    max_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0  # nor by more


class CurriculumSection(Section):
    memory_size: NonNegativeInt = 3  # L, per (set, task); 0 switches history off
    duplicate_similarity: Fraction = 0.8  # token-set similarity from which a remembered question counts as the same
    length: LengthSection = LengthSection()
    task_balance: TaskBalanceSection = TaskBalanceSection()


class RolloutSection(Section):
    engines: PositiveInt = 1  # vLLM engines
    tensor_parallel: PositiveInt = 1  # workers of an engine that share every layer
    pipeline_parallel: PositiveInt = 1  # stages of layers in an engine
    data_parallel: PositiveInt = 1  # replicas inside one engine, over which the experts of a mixture spread too
    expert_parallel: bool = False  # workers hold whole experts instead of a part of each
    placement: Literal["split", "colocated"] = (
        "split"  # engines have GPUs of their own, or share the trainers' and sleep while those train
    )
    sleep_level: Literal[1, 2] = (
        2  # of colocated engines: 1 keeps the weights in host memory, 2 drops them until the next refresh
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the engine's weights, and of the weights on the way there
    max_model_len: PositiveInt = 40960  # prompt and output together, in tokens
    max_num_seqs: PositiveInt = 256  # sequences an engine runs at the same time
    kv_cache_gib: PositiveFloat = 4.0  # of each engine
    enforce_eager: bool = False  # no compilation: starts faster, runs slower
    start_timeout_s: PositiveFloat = 600.0  # longest wait for an engine to start
    request_timeout_s: PositiveFloat = 1800.0  # longest wait for one completion
    stall_timeout_s: PositiveFloat = (
        300.0  # an engine that gives no sign of life for so long hangs and is lost; longer than any step of its workers
    )
    max_restarts: NonNegativeInt = 3  # of each engine that is lost; one that is lost once more is given up

    def mesh(self) -> EngineMesh:
        """Of one engine's workers."""
        return EngineMesh(self.tensor_parallel, self.pipeline_parallel, self.data_parallel, self.expert_parallel)


Transport = Literal["auto", "gloo", "shm", "nccl", "cuda_ipc", "vllm_nccl"]
Landing = Literal["auto", "in_place", "checkpoint"]


class BridgeSection(Section):
    transport: Transport = (
        "auto"  # how bytes travel; auto: shm on one host without GPUs, else cuda_ipc colocated and nccl split
    )
    landing: Landing = (
        "auto"  # in place of the live weights, or through vLLM's reload; auto: in place where those are plain
    )
    check: bool = True  # after each refresh hashes of sampled boxes are compared between both sides
    bucket_mib: PositiveFloat = 256.0  # one message; two are held at a time
    timeout_s: PositiveFloat = 300.0  # longest wait of either side for the other


class ClusterSection(Section):
    ray_address: str | None = None  # None: Ray starts itself on this machine; "auto" or host:port joins a cluster
    master_port: Annotated[int, Field(ge=0, le=65535)] = 0  # rendezvous of the trainers; 0: any free port
    start_timeout_s: PositiveFloat = 300.0  # longest wait for Ray
    step_timeout_s: PositiveFloat = 14400.0  # longest wait of the other trainers for rank 0 to collect a step's rounds


class TrustSection(Section):
    max_log_prob_diff: PositiveFloat = (
        0.5  # engine against policy, per token, at max_staleness 0; beyond it the run stops
    )
    max_log_prob_diff_mean: PositiveFloat = 0.05  # the same, on average over the step's tokens
    max_masked_share: Fraction = 0.5  # of the step's tokens, masked by algo.importance; beyond it the run stops


class WatchSection(Section):
    """Signs of collapse, explained in docs/debugging.md; a ratio is to the mean of the run's first steps."""

    patience: PositiveInt = 3  # steps in a row that a sign must show before it is told
    first_steps: PositiveInt = 5  # whose mean the ratios are to
    actions: dict[Sign, Literal["warn", "stop", "off"]] = {}  # by sign; one that is not named warns
    min_surprisal: NonNegativeFloat = 0.005  # entropy_low: nats a token, of questioner and responder
    min_surprisal_ratio: Fraction = 0.2  # entropy_fell: of the same
    max_surprisal: PositiveFloat = 3.0  # entropy_high: nats a token, of any role
    min_output_ratio: Fraction = 0.25  # output_short: mean output tokens of a role
    max_unfinished_share: Fraction = 0.5  # output_unfinished: outputs of a role that ran into sampling.max_tokens
    max_yes_share: Fraction = 0.95  # always_yes: of all votes
    min_yes_on_accepted: Fraction = 0.1  # always_no: of votes on answers that the rule accepts
    max_yes_on_refused: Fraction = 0.5  # yes_against_rule: of votes on answers that the rule refuses
    max_repeated_share: Fraction = 0.3  # repeated_questions: questions nearly asked before on the same set
    max_repeated_elsewhere_share: Fraction = 0.3  # same_question_everywhere: nearly asked on another set in this step
    max_reward_against_rule: Fraction = 0.5  # reward_against_rule: rewarded answers that only the votes accept
    min_usable_ratio: Fraction = 0.25  # usable_fell: rounds that are usable
    min_rows: PositiveInt = 1  # no_signal: rows of a role that is trained
    remembered_questions: PositiveInt = 4096  # of the latest steps, compared with new ones on the same set


class SuiteSection(Section):
    """Benchmark files (docs/evaluation.md) asked through the run's own engines, scored by the rule alone."""

    files: tuple[str, ...] = ()  # FILE or NAME=FILE, in their own formats; asked whenever evaluation.questions are
    limit: PositiveInt | None = 32  # first records of each file; null: all
    samples: PositiveInt = 4  # of each record
    max_input_tokens: PositiveInt = 16384  # a longer prompt loses its middle


class EvaluationSection(Section):
    questions: Path | None = None  # JSONL: set_id, task, question, gold; asked before and after training
    samples: PositiveInt = 8  # of each question
    every: NonNegativeInt = 0  # also every so many steps; 0: only before and after
    usable_accuracy: Annotated[float, Field(gt=0, le=1)] = 0.5  # least accuracy at a length that the model can use
    suite: SuiteSection = SuiteSection()


class CheckpointSection(Section):
    every: PositiveInt = 10  # steps
    keep: PositiveInt = 2  # newest checkpoints kept
    asynchronous: bool = True  # written while the run goes on, from one more copy of weights and moments in host memory
    timeout_s: PositiveFloat = 3600.0  # longest wait for a checkpoint that is being written


class ObserveSection(Section):
    sinks: tuple[Literal["console", "jsonl", "tensorboard"], ...] = (
        "console",
        "jsonl",
        "tensorboard",
    )  # where metrics go
    rounds: bool = True  # write rounds/step_NNNNNN.jsonl


class RunConfig(Section):
    name: str  # of the run, for people
    run_folder: Path  # where everything the run makes is kept; a whole checkpoint there is gone on from
    seed: NonNegativeInt = 0  # of every draw and sample
    steps: PositiveInt = 70  # optimizer steps; the paper stops at about 70
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
    watch: WatchSection = WatchSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    observe: ObserveSection = ObserveSection()
