"""The training loop, as rank 0 drives it."""

from megatron_spell.observe.spans import span
from megatron_spell.train.run import Run


def train(run: Run) -> None:
    """Take `config.steps` optimizer steps, beginning where the newest whole checkpoint of the run folder stands.

    Raises what ends a run early: TrustError, Collapsed, NotEnoughQuestions, EngineError, TimeoutError. The run folder
    then holds everything up to the last whole checkpoint, and the next start goes on from there.
    """
    run.restore()
    run.evaluate_once("before")
    run.evaluate_if_due()  # where the run was killed between a checkpoint and its evaluation
    while run.step < run.config.steps:
        with span("step", step=run.step + 1):
            taken = run.collect()  # on-policy: played by the step's own weights; else at most max_staleness behind
            batch = run.assemble(taken)
            report = run.update(batch)
            run.publish(version=run.step + 1)
            run.observe(taken)
        run.record(taken, batch, report)
        run.save_if_due()
        run.watch.stop_if_collapsed()
        run.evaluate_if_due()
    run.evaluate_once("after")
    run.settle_save()
    run.summarise()
