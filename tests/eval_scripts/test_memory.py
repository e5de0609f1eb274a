"""Tensors do not pile up; `eval/stress/memory.py`, whose functions these are, measures memory over more steps."""

import pytest
import scripts
import torch

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.5", reason="under torch 2.4 tensors of earlier tests are freed late, amid the counting"
)


@pytest.fixture
def script():
    return scripts.module("stress/memory")


def tensors(measured):
    return [(measurement["tensors"], measurement["tensor_bytes"]) for measurement in measured]


def test_fifty_training_steps_leave_no_tensor_behind(script):
    first, last = tensors(script.training(20, 50, parts=1, images=10))
    assert last == first


def test_twenty_attack_calls_leave_no_tensor_behind(script):
    first, last = tensors(script.attacks(2, 20, parts=1, images=10))
    assert last == first


def test_what_is_kept_is_counted(script):
    kept = []
    measured = script.repeated(lambda: kept.append(torch.zeros(1000)), 1, 20, parts=1)
    first, last = tensors(measured)
    assert (last[0] - first[0], last[1] - first[1]) == (20, 20 * 4000)
    percent = script.grown(measured, {})["growth_percent"]["tensor_bytes"]
    assert percent == round(100 * 20 * 4000 / first[1], 3) > 0
