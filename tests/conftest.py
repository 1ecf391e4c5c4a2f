"""Fixtures that several folders of tests share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from miniature import copy_of, make_models

signal.signal(signal.SIGINT, signal.default_int_handler)      # a background job of a shell inherits that it is ignored


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with really trained small models, made once per test run."""
    folder = tmp_path_factory.mktemp("trained")
    make_models(folder)
    return folder


@pytest.fixture
def miniature(trained: Path, tmp_path: Path) -> Path:
    """A whole kaizend folder, nothing started yet."""
    return copy_of(trained, tmp_path / "mini")
