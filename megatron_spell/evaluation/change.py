"""What changed between two evaluations of the same questions, compared question by question."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from megatron_spell.evaluation.figures import Estimate, bucket, ladder, paired, paired_usable_length, pass_at


def change_between(before: Mapping, after: Mapping) -> dict | None:
    """From the records of evaluations.jsonl: {"accuracy", "pass_at", "by_length", "usable_length"}, after - before.

    Each change has mean, low, high (95 %, from draws of questions, the same for both) and num_questions. None when the
    two did not ask the same questions as often, or were written before questions were kept.
    """
    if any(before.get(name) is None or before[name] != after.get(name) for name in ("asked", "num_samples")):
        return None
    samples, lengths = before["num_samples"], before["document_tokens"]
    first, second = ([right / samples for right in entry["num_right"]] for entry in (before, after))
    buckets = [bucket(tokens) for tokens in lengths]
    usable = paired_usable_length(first, second, lengths, after["usable_accuracy"])
    return {
        "accuracy": asdict(paired(first, second)),
        "pass_at": {str(k): asdict(_pass_at_change(before, after, samples, k)) for k in ladder(samples)},
        "by_length": {str(b): asdict(_of_bucket(first, second, buckets, b)) for b in sorted(set(buckets))},
        "usable_length": usable and asdict(usable),
    }


def _pass_at_change(before: Mapping, after: Mapping, samples: int, k: int) -> Estimate:
    first, second = ([pass_at(right, samples, k) for right in entry["num_right"]] for entry in (before, after))
    return paired(first, second)


def _of_bucket(first: Sequence[float], second: Sequence[float], buckets: Sequence[int], wanted: int) -> Estimate:
    chosen = [number for number, of in enumerate(buckets) if of == wanted]
    return paired([first[number] for number in chosen], [second[number] for number in chosen])
