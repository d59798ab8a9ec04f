"""The command line of tokenizer_tools, from text files to a folder that transformers reads."""

from transformers import AutoTokenizer
from typer.testing import CliRunner

from tokenizer_tools.main import app

WORDS = "the quick brown fox jumps over the lazy dog and runs away from the bear in the wood"


def test_train_then_convert(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(WORDS for _ in range(5)), encoding="utf-8")
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}\n", encoding="utf-8")
    runner = CliRunner()
    trained = runner.invoke(
        app,
        [
            "train",
            str(text),
            "--out",
            str(tmp_path / "t"),
            "--vocab-size",
            "300",
            "--symbol",
            "the lazy dog",
            "--control",
            "<|user|>",
        ],
    )
    assert trained.exit_code == 0, trained.output
    converted = runner.invoke(
        app, ["convert", str(tmp_path / "t.model"), str(tmp_path / "hf"), "--chat-template", str(template)]
    )
    assert converted.exit_code == 0, converted.output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.tokenize("over the lazy dog")[-1] == "the lazy dog"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert len(tokenizer.encode("<|user|>", add_special_tokens=False)) == 1


def test_bad_input_is_one_line(tmp_path):
    refused = CliRunner().invoke(app, ["convert", str(tmp_path / "none.model"), str(tmp_path / "hf")])
    assert refused.exit_code == 2
    assert refused.output.strip() == f"{tmp_path / 'none.model'} does not exist"
