"""The guard that watches every public call names what a call leaves changed, and lets pass what is documented."""

import contextlib
import logging
import os
import random
import signal
import warnings

import numpy as np
import pytest
import state_guard
import torch
from state_guard import StateChanged
from torch import nn

import atent_ext
from atent_ext.core import compat, norms
from atent_ext.evaluation import certificates, run, scoring
from atent_ext.experiments import drawing, quickstart, reproduce
from atent_ext.submissions import verification
from atent_ext.training.entropy_sgd import EntropySGD

HANDLER = logging.NullHandler()
LOGGER = logging.getLogger("auto-attack")
CUDNN = ("enabled", "benchmark", "deterministic")


def turned(name):
    return lambda: setattr(torch.backends.cudnn, name, not getattr(torch.backends.cudnn, name))


# What a bad function may do to each kind of state.
CHANGES = {
    "torch's random state": [lambda: torch.rand(1)],
    "torch's seed": [lambda: torch.manual_seed(torch.initial_seed() + 1)],
    "numpy's random state": [lambda: np.random.rand()],  # noqa: NPY002 -- the global state is what is tested
    "python's random state": [random.random],
    "warnings filters": [lambda: warnings.simplefilter("ignore")],
    "default dtype": [lambda: torch.set_default_dtype(torch.float64)],
    "grad mode": [lambda: torch.set_grad_enabled(False)],
    "deterministic algorithms": [lambda: torch.use_deterministic_algorithms(True)],
    "matmul precision": [lambda: torch.set_float32_matmul_precision("high")],
    "number of threads": [lambda: torch.set_num_threads(torch.get_num_threads() + 1)],
    "cudnn flags": [*map(turned, CUDNN)],
    "mkldnn flags": [lambda: setattr(torch.backends.mkldnn, "deterministic", True)],
    "logging": [
        lambda: logging.disable(logging.INFO),
        lambda: logging.root.addHandler(HANDLER),
        lambda: logging.root.setLevel(1),
        lambda: LOGGER.setLevel(1),
    ],
    "signal handlers": [
        # A handler of its own: in a background job SIGINT is ignored already.
        lambda: signal.signal(signal.SIGINT, lambda number, frame: None),
        lambda: signal.signal(signal.SIGTERM, lambda number, frame: None),
    ],
    "current folder": [lambda: os.chdir("/")],
    "environment": [lambda: os.environ.update(ATENT_GUARD="1")],
}


@pytest.fixture
def restored(monkeypatch):
    """Puts back what the changes above change; pytest itself does so for the warnings filters."""
    monkeypatch.chdir(".")
    monkeypatch.setenv("ATENT_GUARD", "0")
    numbers = signal.SIGINT, signal.SIGTERM
    handlers, levels = [*map(signal.getsignal, numbers)], [(logger, logger.level) for logger in (logging.root, LOGGER)]
    threads, flags = torch.get_num_threads(), [(name, getattr(torch.backends.cudnn, name)) for name in CUDNN]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    for logger, level in levels:
        logger.setLevel(level)
    logging.root.removeHandler(HANDLER)
    logging.disable(logging.NOTSET)
    for name, value in flags:
        setattr(torch.backends.cudnn, name, value)
    torch.backends.mkldnn.deterministic = False
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)


def refused(call, *arguments):
    """What the guard says of a call; the fixture that watches this test does not hear of it."""
    with pytest.raises(StateChanged) as error:
        call(*arguments)
    state_guard.violations.remove(str(error.value))
    return str(error.value)


def test_every_kind_of_state_is_tried():
    assert list(CHANGES) == list(state_guard.PROBES)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(("kind", "change"), [(kind, change) for kind in CHANGES for change in CHANGES[kind]])
def test_a_change_is_named(kind, change):
    def bad():
        change()

    expected = ["torch's random state", kind] if kind == "torch's seed" else [kind]
    assert refused(state_guard.watched(bad)) == f"{__name__}.{bad.__qualname__} changed: {', '.join(expected)}"


def test_a_call_that_ends_in_an_exception_is_checked_too():
    def bad():
        random.random()
        raise OSError("no matter")

    assert "python's random state" in refused(state_guard.watched(bad))


def test_what_is_put_back_or_happens_between_calls_is_no_change():
    def good():
        with torch.random.fork_rng(devices=()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return float(torch.rand(1))

    call = state_guard.watched(good)
    first = call()
    torch.rand(1)
    assert call() != first


def test_a_generator_is_checked_at_each_step_and_its_consumer_is_not():
    def draws_late():
        yield 1
        yield random.random()

    steps = state_guard.watched(draws_late)()
    assert next(steps) == 1
    random.random()
    assert "python's random state" in refused(next, steps)
    assert list(state_guard.watched(lambda: (number for number in range(3)))()) == [0, 1, 2]


def test_only_the_outermost_call_is_checked():
    inner = state_guard.watched(lambda: random.random())

    def puts_back():
        state = random.getstate()
        inner()
        random.setstate(state)

    state_guard.watched(puts_back)()


def test_a_call_may_draw_from_torch_without_a_generator_but_not_seed():
    def draw(generator=None):
        return torch.rand(2, generator=generator) if generator else torch.rand(2)

    def seed(generator=None):
        torch.manual_seed(torch.initial_seed() + 1)

    def ignore(generator):
        return torch.rand(2)

    given = torch.Generator().manual_seed(0)
    state_guard.watched(draw)()
    state_guard.watched(draw)(given)
    assert refused(state_guard.watched(seed)).endswith("changed: torch's seed")
    assert refused(state_guard.watched(ignore), given).endswith("changed: torch's random state")


def test_dropout_may_draw_in_train_mode():
    def run(model, x):
        return model(x)

    layer, call = nn.Dropout(0.5), state_guard.watched(run)
    call(layer, torch.ones(3))
    call(layer.eval(), torch.ones(3))
    assert "torch's random state" in refused(call, torch.rand_like, torch.ones(3))


def test_what_users_call_is_watched():
    calls = [getattr(atent_ext, name) for name in atent_ext.__all__ if name != "AtentError"]
    kinds = [kind for kind in calls if isinstance(kind, type) and hasattr(kind, "scaled")]
    assert len(kinds) == 5  # the objectives, four of which inherit their call
    watched = [atent_ext.fit, atent_ext.load, *(kind.__call__ for kind in kinds)]
    attack = atent_ext.LinfATENTAttack
    watched += [attack.perturb, attack.sample, EntropySGD.step, drawing.draw, quickstart.quickstart, norms.gaussian]
    watched += [scoring.score, certificates.certify, verification.verify, run.run_protocol, reproduce.reproduce]
    assert all(call.is_watched for call in watched)
    assert not hasattr(compat.advertorch, "is_watched")


def test_a_violation_that_was_caught_is_remembered():
    def bad():
        random.random()

    with contextlib.suppress(StateChanged):
        state_guard.watched(bad)()
    assert [line.rpartition(" changed: ")[2] for line in state_guard.violations] == ["python's random state"]
    state_guard.violations.clear()
