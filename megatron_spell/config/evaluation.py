"""What is asked while a run trains: held-out questions, and a small suite of benchmark files."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from megatron_spell.config.section import NonNegativeInt, PositiveInt, Section


class SuiteSection(Section):
    """Benchmark files (docs/evaluation.md) asked through the run's own engines and scored by the rule alone."""

    files: tuple[Path, ...] = ()  # in their own formats; asked before and after training, and every evaluation.every
    limit: PositiveInt | None = 32  # first records of each file; null: all
    samples: PositiveInt = 4  # of each record
    max_input_tokens: PositiveInt = 16384  # a longer prompt loses its middle


class EvaluationSection(Section):
    questions: Path | None = None  # JSONL: set_id, task, question, gold; asked before and after training
    samples: PositiveInt = 8  # of each question
    every: NonNegativeInt = 0  # also every so many steps; 0: only before and after
    usable_accuracy: Annotated[float, Field(gt=0, le=1)] = 0.5  # least accuracy at a length that the model can use
    suite: SuiteSection = SuiteSection()
