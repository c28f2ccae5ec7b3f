"""What tests of methods share."""

from __future__ import annotations

import pytest

from harness.api import Context


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A context of its own for each file; nothing that is logged is kept."""
    return Context(seed=3, device="cpu", scratch=tmp_path_factory.mktemp("scratch"), log=lambda *_: None)
