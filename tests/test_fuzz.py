"""Some hundred of the cases of which `eval/stress/fuzz.py` runs ten thousand: a valid result or a documented error."""

from contextlib import contextmanager

import fuzzing
import fuzzing_commands
import pytest
from fuzzing import OWN, VALID
from hypothesis import HealthCheck, Phase, given, settings

from atent_ext.attacks import restarts
from atent_ext.core import norms

CHECKS = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
DOCUMENTED = {VALID, OWN, fuzzing.NOT_FINITE, "BadInput"}


@settings(max_examples=100, **CHECKS)
@given(fuzzing.attacks())
def test_attacks(case):
    assert fuzzing.outcome(case) in DOCUMENTED


@settings(max_examples=100, **CHECKS)
@given(fuzzing.trainings())
def test_objectives(case):
    assert fuzzing.outcome(case) in DOCUMENTED


@settings(max_examples=40, **CHECKS)
@given(fuzzing.kernels())
def test_kernels(case):
    assert fuzzing.outcome(case) in {VALID, "BadInput"}


def test_commands(tmp_path):
    @settings(max_examples=60, **CHECKS)
    @given(fuzzing_commands.commands())
    def run(words):
        seen.add(fuzzing_commands.outcome(words))

    seen = set()
    with fuzzing_commands.workshop(tmp_path):
        run()
    assert {"exit code 0", "exit code 2"} <= seen <= {"exit code 0", "exit code 1", "exit code 2"}


# That a fault would be found.


def first_fault(strategy):
    @settings(max_examples=200, phases=[Phase.generate], report_multiple_bugs=False, **CHECKS)
    @given(strategy)
    def run(case):
        fuzzing.outcome(case)

    run()


@pytest.mark.parametrize("strategy", [fuzzing.attacks(), fuzzing.trainings(), fuzzing.kernels()])
def test_a_projection_that_does_nothing_is_found(strategy, monkeypatch):
    for norm in (norms.LINF, norms.L2):
        monkeypatch.setattr(type(norm), "project", lambda self, delta, eps: delta)
    with pytest.raises(AssertionError, match="outside the ball"):
        first_fault(strategy)


def test_a_network_that_is_changed_and_an_error_without_a_name_are_found(monkeypatch):
    @contextmanager
    def forgetful(model):
        yield model.eval()

    monkeypatch.setattr("atent_ext.attacks.advertorch_style.evaluating", forgetful)
    with pytest.raises(AssertionError, match="modes of the network changed"):
        first_fault(fuzzing.attacks())
    monkeypatch.setattr(restarts, "check", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        first_fault(fuzzing.attacks())


def test_a_traceback_and_another_exit_code_are_found(monkeypatch):
    monkeypatch.setattr(fuzzing_commands, "run", lambda words: (2, "", "Traceback (most recent call last):"))
    with pytest.raises(AssertionError, match="a traceback"):
        fuzzing_commands.outcome(())
    monkeypatch.setattr(fuzzing_commands, "run", lambda words: (3, "", ""))
    with pytest.raises(AssertionError, match="exit code 3"):
        fuzzing_commands.outcome(())
