import pytest

from tests.tiny_tokenizer import write_byte_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model folder that holds only a tokenizer."""
    return write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))
