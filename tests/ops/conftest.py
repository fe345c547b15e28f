"""Fixtures of the op tests."""

from collections.abc import Iterator

import pytest
import torch

from tests.ops import harness


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    with harness.poisoned_memory():
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """Other numbers in every run; a failing test prints its seed."""
    return harness.fresh_generator()
