import pytest

from tests.e2e.quickstart import build_store


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A token store of the Python language reference, by the quickstart's tokenizer."""
    return build_store(tmp_path_factory.mktemp("store"))
