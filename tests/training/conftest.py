"""What tests of the training loop share: a small data set, and a small network under a name."""

import math

import pytest
import torch
from accelerate.state import AcceleratorState

from atent_ext.core import registry
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet, Split


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps the mixed precision of the process's first run."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture
def tiny_net(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "tiny-net", "problems:tiny_net")


@pytest.fixture(scope="module")
def tiny():
    """200 training digits, and a test split that breaks whatever touches it."""
    digits = datasets.load("digits")
    broken = Split(torch.full_like(digits.test.images, math.nan), torch.full_like(digits.test.labels, -1))
    return DataSet(digits.name, digits.classes, digits.train.take(200), broken)
