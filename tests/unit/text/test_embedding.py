"""A small encoder with random weights, saved as the library saves one and as plain transformers do."""

import numpy as np
import pytest

from megatron_spell.text.embedding import EmbeddingError, TextEmbedder

TEXTS = ["a b c", "c b a a b", "b"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch = pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3, "c": 4}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.model_max_length = 16
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=1
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def states(encoder, text):
    import torch

    _, model, tokenizer = encoder
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()


def test_a_plain_encoder_gives_the_mean_of_its_states(encoder):
    embedder = TextEmbedder.load(encoder[0])
    wanted = np.stack([states(encoder, text).mean(axis=0) for text in TEXTS])
    np.testing.assert_allclose(embedder.embed(TEXTS), wanted, atol=1e-6)
    # Planted: the mean over a batch with its padding is another.
    import torch

    _, model, tokenizer = encoder
    with torch.no_grad():
        padded = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).last_hidden_state.mean(dim=1).numpy()
    assert np.abs(padded[2] - wanted[2]).max() > 1e-3


def test_the_folder_says_how_states_are_pooled(encoder, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    words = Transformer(str(encoder[0]))
    pooling = Pooling(8, pooling_mode="lasttoken")
    SentenceTransformer(modules=[words, pooling]).save(str(tmp_path))
    wanted = np.stack([states(encoder, text)[-1] for text in TEXTS])
    np.testing.assert_allclose(TextEmbedder.load(tmp_path).embed(TEXTS), wanted, atol=1e-6)
    assert TextEmbedder.load(tmp_path).fingerprint != TextEmbedder.load(encoder[0]).fingerprint


def test_what_is_no_model_is_told(tmp_path):
    with pytest.raises(EmbeddingError, match=r"neither modules\.json nor config\.json"):
        TextEmbedder.load(tmp_path)
    pytest.importorskip("sentence_transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EmbeddingError, match="holds no embedding model that can be read"):
        TextEmbedder.load(tmp_path)
