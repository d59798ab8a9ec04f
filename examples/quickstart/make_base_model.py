"""Make the quickstart's base model from nothing: tokenizer, random weights, copying, then a little of the three roles.

    python examples/quickstart/make_base_model.py --out examples/quickstart/base_model

Nothing but the training sets of the store's split is read; what is measured at the end is held out.
"""

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from contexts import Contexts
from lookup import Spans
from measure import look_up_table, table_lines
from transcripts import ANSWERING, ASKING, SYMBOLS, TEMPLATE_SYMBOLS, WORDS_ANSWER, Scribe, Transcript
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from warm_up import Asks, Rows, batch_rows, learn_to_copy, learn_to_play

from megatron_spell.data.build import HELDOUT, TRAIN, plan_sets, read_sources
from megatron_spell.data.settings import BuildSettings
from megatron_spell.roles.templates import Templates
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from tokenizer_tools.convert import sentencepiece_to_hf
from tokenizer_tools.train import train_sentencepiece

HERE = Path(__file__).parent
SOURCE = "python-topics"
VOCAB_SIZE = 1280
MAX_POSITIONS = 4096
FIRST_COPIED_ID = 260  # random texts leave out what seldom stands in real ones: control pieces, wordings, bytes
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Stage:
    """`num_contexts` a step, each of one of `lengths` tokens."""

    until: float  # share of the steps
    num_contexts: int
    lengths: tuple[int, ...]
    salad_share: float
    by_habit: bool = False  # looking up is learned first, then the habits that compete (habits.py)


STAGES = (
    Stage(0.2, 7, (96, 128), 0.5),
    Stage(0.55, 6, (128, 256, 384), 0.3),
    Stage(1.0, 4, (256, 512, 1024), 0.3, by_habit=True),
)
NUMBER_SHARE = 0.5
# Votes are wrong this often in the transcripts, so that the verifier is no more certain than a base model is.
VOTE_NOISE = 0.15
NUM_VOTES = 6
BRANCH_TOKENS = 500  # of what is asked about one context, about


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    folder = options.out
    train_sets, held_out_sets = split_texts()
    tokenizer = make_tokenizer(folder, [text for texts in train_sets for text in texts])
    scribe = Scribe(tokenizer, ChatFormat(tokenizer), Templates.load(HERE / "templates"), Spans(tokenizer))
    model, seed = copying_model(options.seed, Asks(FIRST_COPIED_ID, between_question_and_answer(scribe)))
    contexts, held_out = Contexts.of(tokenizer, train_sets), Contexts.of(tokenizer, held_out_sets)
    batches = Transcripts(scribe, contexts, random.Random(seed))
    for step in learn_to_play(model, batches, options.steps, peak_lr=2.5e-3, say=_say):
        if step % 200 == 0 and step < options.steps:
            _say("\n".join(table_lines(look_up_table(model, scribe, held_out, num_contexts=8))))
    save(model, folder)
    _say(f"\nheld-out look-ups right, after {time.monotonic() - started:.0f} s in all (seed {seed}):")
    _say("\n".join(table_lines(look_up_table(model, scribe, held_out, num_contexts=40))))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "base_model")
    parser.add_argument("--steps", type=int, default=1000, help="training steps on transcripts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more than one changes the order of sums")
    return parser.parse_args()


def split_texts() -> tuple[list[list[str]], list[list[str]]]:
    """The texts of the sets that a store of the same source and settings trains on, and of those it holds out."""
    settings = BuildSettings()
    planned = plan_sets(read_sources([SOURCE], settings), settings)
    train, held_out = (
        [[d.text for d in one.documents] for one in planned if one.split == split] for split in (TRAIN, HELDOUT)
    )
    return train, held_out


def make_tokenizer(folder: Path, texts: list[str]) -> Tokenizer:
    """A lossless sentencepiece model of `texts` as a Hugging Face tokenizer; the fixed wordings are single tokens."""
    model_file = train_sentencepiece(
        texts,
        folder / "tokenizer",
        VOCAB_SIZE,
        user_defined_symbols=SYMBOLS + TEMPLATE_SYMBOLS,
        control_symbols=("<|user|>", "<|assistant|>"),
        eos_piece="<|end|>",
        pad_piece="<|pad|>",
    )
    sentencepiece_to_hf(model_file, folder, chat_template=CHAT_TEMPLATE, max_length=MAX_POSITIONS)
    return Tokenizer.load(folder)


def between_question_and_answer(scribe: Scribe) -> tuple[int, ...]:
    """The ids from the end of a question to the first word of its answer."""
    literal = scribe.tokenizer.encode_literal
    return (*literal("<|end|><|assistant|>").tolist(), *scribe.tokenizer.encode_quoted(WORDS_ANSWER).tolist())


def copying_model(seed: int, asks: Asks) -> tuple[Qwen3ForCausalLM, int]:
    """A model that copies, and its seed: seeds that do not get there in time are given up for the next."""
    for attempt in range(seed, seed + 5):
        model = random_model(attempt)
        if learn_to_copy(model, attempt, asks, max_steps=1000, say=_say):
            return model, attempt
        _say(f"copying: seed {attempt} did not learn it; next seed")
    raise SystemExit(f"none of the seeds {seed} to {seed + 4} learned to copy")


def random_model(seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,  # the smallest that vLLM computes
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


class Transcripts:
    """Batches of transcripts that get longer as training goes on."""

    def __init__(self, scribe: Scribe, contexts: Contexts, rng: random.Random) -> None:
        self._scribe, self._contexts, self._rng = scribe, contexts, rng

    def __call__(self, done: float) -> Rows:
        stage = next(stage for stage in STAGES if done < stage.until)
        num_tokens = self._rng.choice(stage.lengths)
        # about as many tokens in every step, however long the documents are
        num_contexts = stage.num_contexts * (BRANCH_TOKENS + stage.lengths[0]) // (BRANCH_TOKENS + num_tokens)
        return batch_rows([self._row(stage, num_tokens) for _ in range(max(2, num_contexts))])

    def _row(self, stage: Stage, num_tokens: int) -> list[Transcript]:
        rng, scribe = self._rng, self._scribe
        while True:
            documents = self._contexts.draw(rng, num_tokens, stage.salad_share, NUMBER_SHARE)
            row = [scribe.answering(documents, task, rng, by_habit=stage.by_habit) for task in ANSWERING]
            row += [scribe.asking(documents, task, rng) for task in ASKING]
            noise = VOTE_NOISE if stage.by_habit else 0.0
            row += [scribe.judging(documents, rng, noise) for _ in range(NUM_VOTES)]
            if row[0] is not None:
                return [transcript for transcript in row if transcript is not None]


def save(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Write config, weights and generation config beside the tokenizer."""
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=2)
    model.save_pretrained(folder)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    _say(f"{folder}: {sum(p.numel() for p in model.parameters())} parameters, {num_bytes / 2**20:.1f} MiB in all")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
