"""Result lines with what a test cares about; the rest is filled in."""

from megatron_spell.evaluation.results import SampleResult


def result(benchmark: str, record_id: str, sample: int, right: float, **more) -> SampleResult:
    judged = more.get("judge_score")
    fields = {
        "kind": "",
        "documents": True,
        "seed": sample,
        "prompt_tokens": 1000,
        "truncated_tokens": 0,
        "finish_reason": "stop",
        "num_tokens": 50,
        "prediction": "x",
        "rule_score": right,
    } | more
    score = max(right, judged or 0.0)
    return SampleResult(benchmark=benchmark, record_id=record_id, sample=sample, score=score, **fields)


def results(benchmark: str, rights: list[str], **more) -> list[SampleResult]:
    """One question for each text of `rights`, one sample for each of its letters: 1 is right, 0 is wrong."""
    return [
        result(benchmark, f"q{number}", sample, float(letter), **more)
        for number, letters in enumerate(rights)
        for sample, letter in enumerate(letters)
    ]
