import json

import numpy as np
import pytest

from megatron_spell.observe.files import encode_line, json_line, write_whole
from megatron_spell.types.play import Role


def test_numbers_that_json_does_not_know_become_null():
    record = {"nan": float("nan"), "inf": np.float32(np.inf), "list": [1.5, -np.inf], "array": np.array([1.0, np.nan])}
    assert json.loads(json_line(record)) == {"nan": None, "inf": None, "list": [1.5, None], "array": [1.0, None]}


def test_numpy_enums_and_tuples_become_plain():
    record = {Role.VERIFIER: (np.int64(3), np.bool_(True), Role.RESPONDER, None, False), "f": np.float32(0.5)}
    assert json.loads(json_line(record)) == {"verifier": [3, True, "responder", None, False], "f": 0.5}


def test_what_is_no_record_is_refused():
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        json_line({"x": object()})


@pytest.mark.parametrize("text", ["line\nbreak\u2028", "Zürich 東京 🙂", "lone \udc80 surrogate", '"quoted"\\'])
def test_any_text_is_one_line_that_reads_back(text):
    line = encode_line(json_line({"text": text}))
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"text": text}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "made" / "file.jsonl"
    write_whole(path, ["one"])

    def failing():
        yield "two"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(path, failing())
    assert path.read_text() == "one\n"
    assert list(path.parent.iterdir()) == [path]
