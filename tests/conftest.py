"""Shared fixtures."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = os.environ.get("ATENT_DATA")
    if root and Path(root).is_dir():
        return Path(root)
    reason = "ATENT_DATA does not name a folder with the real data sets"
    if os.environ.get("ATENT_REQUIRE_DATA"):
        pytest.fail(reason)
    pytest.skip(reason)
