"""What every trainer rank can be told to do by rank 0 (see crew.py)."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from pathlib import Path

import torch.distributed as dist

from megatron_spell.bridge.planner import Site
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.observe import spans
from megatron_spell.policy.saving import PolicyState
from megatron_spell.policy.step import StepReport
from megatron_spell.policy.worker import MegatronPolicy
from megatron_spell.train.checkpoints import CheckpointError, Checkpoints
from megatron_spell.train.crew import gatherer
from megatron_spell.train.links import Links, Meeting, Sent, site_of
from megatron_spell.train.saving import BackgroundSave
from megatron_spell.types.batches import PackedBatch


class Member:
    """One rank's policy and its end of the bridge. Every method runs on all ranks together."""

    def __init__(self, config: RunConfig, shape: ModelShape):
        self.policy = MegatronPolicy(
            shape,
            config.policy,
            temperature=config.sampling.temperature,
            algo=config.algo,
            trust=config.trust,
            seed=config.seed,
        )
        self._asynchronous = config.checkpoint.asynchronous
        self._saving = BackgroundSave(f"trainer rank {rank_of_this_process()}", config.checkpoint.timeout_s)
        # a rank may be waiting for an engine while the others wait for it
        agree = gatherer(config.policy.timeout_s + config.bridge.timeout_s)
        self._agree = agree
        # the parameters themselves, not views of their memory: the bridge sees when one moves
        self._links = Links(rank_of_this_process(), lambda: self.policy.parameters, agree)

    def load_hf(self, folder: Path) -> None:
        """Weights from a Hugging Face folder; the optimizer starts anew."""
        self.policy.load_hf(folder)

    def load(self, folder: Path) -> None:
        """Weights and optimizer from a checkpoint."""
        self.policy.load(folder)

    def save(self, step: int, checkpoints: Checkpoints) -> Future[None] | None:
        """Write the policy beside what rank 0 has put into the checkpoint begun for `step`, and commit it.

        With `checkpoint.asynchronous` only a snapshot is taken here, after the save before has ended; the future of the
        rest is returned. Raises what the save before raised; CheckpointError when the folder cannot be written.
        """
        if not self._asynchronous:
            self._write(self.policy.live_state(), step, checkpoints)
            return None
        self._saving.settle()  # first, so that there is one snapshot at a time
        snapshot = self.policy.snapshot()
        return self._saving.start(f"step {step}", lambda: self._write_aside(snapshot, step, checkpoints))

    def settle(self) -> None:
        """Wait for the save under way. Raises what it raised, SaveTimeout beyond `checkpoint.timeout_s`."""
        self._saving.settle()

    def _write_aside(self, state: PolicyState, step: int, checkpoints: Checkpoints) -> None:
        with spans.span("save_background", step=step):
            self._write(state, step, checkpoints)

    def _write(self, state: PolicyState, step: int, checkpoints: Checkpoints) -> None:
        self.policy.write(state, checkpoints.aside(step) / "policy")
        fault = None
        if rank_of_this_process() == 0:
            try:
                checkpoints.commit(step)
            except CheckpointError as error:
                fault = str(error)
        self.policy.agree(fault)  # so that no rank leaves before the checkpoint is whole

    def update(self, batch: PackedBatch) -> StepReport:
        """One optimizer step. Raises TrustError before it is taken when the engines' weights are not the policy's."""
        return self.policy.update(batch)

    def sites(self) -> list[Site]:
        """Where each trainer rank's weights are."""
        return [tuple(site) for site in self._agree(list(site_of(self.policy.parameters)))]

    def connect(self, meetings: Sequence[Meeting]) -> dict[int, str]:
        """See Links: meet engines, who must be coming at the same time; engine -> why there is no link to it."""
        return self._links.connect(meetings)

    def send(self, engines: Collection[int], check: int | None) -> Sent:
        """See Links: send this rank's share of the weights as they are now to engines that are receiving."""
        return self._links.send(engines, check)

    def drop(self, engines: Collection[int]) -> None:
        """Close the links to engines that are gone."""
        self._links.drop(engines)


def rank_of_this_process() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
