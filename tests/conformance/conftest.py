"""What those need that examine senders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.conformance.certificates import Authority
from tests.conformance.nursery import Nursery, nursery


@pytest.fixture(scope="module")
def authority() -> Authority:
    """One for all: keys take time."""
    return Authority()


@pytest.fixture(scope="module")
def senders() -> Iterator[Nursery]:
    """Where senders come from."""
    with nursery() as running:
        yield running


@pytest.fixture
def certificate(authority: Authority, tmp_path: Path) -> Path:
    """The authority's, for senders that trust it."""
    path = tmp_path / "authority.pem"
    path.write_text(authority.pem)
    return path
