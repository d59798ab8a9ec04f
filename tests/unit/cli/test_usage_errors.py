import sys

import pytest

from megatron_spell.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "Missing argument 'run'"),
        (["trian"], "No such command 'trian'"),
        (["train", "a.yaml", "--set"], "Option '--set' requires an argument"),
        (["data", "build", "x"], "Missing option '--out'"),
        (["data", "build", "x", "--out", "y", "--tokenizer", "z", "--set-size", "q"], "Invalid value for '--set-size'"),
    ],
)
def test_arguments_that_make_no_sense_are_one_line_and_exit_code_2(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["megatron-spell", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith(f"megatron-spell: {said}")
    assert err.count("\n") == 1
    assert "--help`" in err
