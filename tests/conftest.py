"""Shared fixtures."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = os.environ.get("ATENT_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("ATENT_DATA does not name a folder with the real data sets")
    return Path(root)
