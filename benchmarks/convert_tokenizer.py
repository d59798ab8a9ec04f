"""Conversion of a tiktoken vocabulary: time, equality over many texts, encoding rate against tiktoken itself.

    python benchmarks/convert_tokenizer.py qwen.tiktoken TEXT... [--texts 5000] [--code-points]

TEXT are .txt, .md or .jsonl files or folders (a .jsonl line is an object with "text"). Needs tiktoken. Rates are of one
thread, taken in turn, piece by piece; the ratio is what to read, the machine may be busy with other things.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tiktoken
from tokenizers import Tokenizer

from tokenizer_tools.convert import tiktoken_to_hf
from tokenizer_tools.patterns import PATTERNS
from tokenizer_tools.texts import read_texts
from tokenizer_tools.tiktoken_ranks import read_ranks

PIECES = {"4,000 characters": 4000, "100,000 characters": 100_000}
MAX_CHARACTERS = 1_000_000
ROUNDS = 3
# of each script some, and what tokenizers differ in: blanks, controls, marks, digits, emoji
RANGES = ((0, 0x7F), (0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x10FF), (0x1E00, 0x22FF),
          (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xFFFF), (0x10000, 0x10FFFF),
          (0x1F300, 0x1FAFF), (0x200B, 0x200F), (0x30, 0x39), (0x20, 0x20))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ranks", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--texts", dest="num_texts", type=int, default=5000, help="random texts to compare on")
    parser.add_argument("--code-points", action="store_true", help="compare every code point too; a minute of CPU time")
    arguments = parser.parse_args()
    original = tiktoken.Encoding(
        "qwen", pat_str=PATTERNS["qwen"], mergeable_ranks=read_ranks(arguments.ranks), special_tokens={}
    )
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        tiktoken_to_hf(arguments.ranks, Path(folder), "qwen", nfc=False)
        converted = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        size = (Path(folder) / "tokenizer.json").stat().st_size
        fast = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    fast.encode_special_tokens = True
    text = "\n".join(one.text for one in read_texts(arguments.texts))[:MAX_CHARACTERS]
    report = {
        "conversion": converted | {"tokenizer_json_bytes": size},
        "code_points": _code_points(fast, original) if arguments.code_points else None,
        "random_texts": _random_texts(fast, original, arguments.num_texts),
        "rates": {name: _rates(fast, original, text, length) for name, length in PIECES.items()},
    }
    json.dump(report, sys.stdout, indent=2)
    print()


def _code_points(fast: Tokenizer, original: tiktoken.Encoding) -> dict[str, int]:
    """Every code point between letters, digits, blanks, signs and line ends, and twice."""
    points = [chr(n) for n in range(0x110000) if not 0xD800 <= n < 0xE000]
    texts = [f"a{c}1{c} {c}{c}?{c}\n{c}" for c in points]
    return {"num": len(texts), "different": _different(fast, original, texts)}


def _random_texts(fast: Tokenizer, original: tiktoken.Encoding, num_texts: int) -> dict[str, int]:
    draw = random.Random(0)
    texts = [
        "".join(_character(draw) * draw.choice((1, 1, 1, 2, 9)) for _ in range(draw.randrange(60)))
        for _ in range(num_texts)
    ]
    return {"num": num_texts, "characters": sum(map(len, texts)), "different": _different(fast, original, texts)}


def _character(draw: random.Random) -> str:
    number = draw.randint(*draw.choice(RANGES))
    return " " if 0xD800 <= number < 0xE000 else chr(number)


def _different(fast: Tokenizer, original: tiktoken.Encoding, texts: list[str]) -> int:
    return sum(fast.encode(text).ids != original.encode_ordinary(text) for text in texts)


def _rates(fast: Tokenizer, original: tiktoken.Encoding, text: str, length: int) -> dict[str, float]:
    """Characters a second of CPU time, each the best of ROUNDS, and tokens that differ."""
    pieces = [text[at : at + length] for at in range(0, len(text), length)]
    seconds = {"converted": [], "tiktoken": []}
    for _ in range(ROUNDS):
        for name, encode in (("converted", lambda t: fast.encode(t).ids), ("tiktoken", original.encode_ordinary)):
            start = time.process_time()
            for piece in pieces:
                encode(piece)
            seconds[name].append(time.process_time() - start)
    best = {f"{name}_characters_per_cpu_s": len(text) / min(taken) for name, taken in seconds.items()}
    return best | {
        "ratio": min(seconds["tiktoken"]) / min(seconds["converted"]),
        "different": _different(fast, original, pieces),
    }


if __name__ == "__main__":
    main()
