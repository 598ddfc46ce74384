"""Keep the tests of the monitors quiet about what they do not test."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

UNRELATED = (
    ".*treespec.*",
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*You defined a `validation_step` but have no.*",
    ".*in eval mode at the start of training.*",
    ".*Checkpoint directory.*",
)


@pytest.fixture(autouse=True)
def only_related_warnings() -> Iterator[None]:
    """Ignore Lightning's hints about loaders, loggers and intervals."""
    with warnings.catch_warnings():
        for message in UNRELATED:
            warnings.filterwarnings("ignore", message=message)
        yield
