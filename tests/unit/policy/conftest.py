"""Tiny models for tests of one process."""

from pathlib import Path

import pytest

from tests.distributed.policy_lab import Reference, write_tiny_qwen3


@pytest.fixture(scope="package")
def models(tmp_path_factory) -> dict[bool, Path]:
    """Tiny Qwen3 folders, by whether their embeddings are tied."""
    folder = tmp_path_factory.mktemp("models")
    return {tied: write_tiny_qwen3(folder / f"tied_{tied}", tied) for tied in (False, True)}


@pytest.fixture
def model(models) -> Path:
    return models[False]


@pytest.fixture
def reference(model) -> Reference:
    return Reference(model)
