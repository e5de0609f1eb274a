"""Shared fixtures, and the guard that watches every public call while the tests run."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import state_guard
import warm

state_guard.watch_package()  # before the test modules import names from it


_traces = []


def pytest_runtest_setup():
    """Coverage goes on where a package, such as AutoAttack by itself, has switched the trace function off."""
    if not _traces:
        _traces.append(sys.gettrace())
    if sys.gettrace() is not _traces[0]:
        sys.settrace(_traces[0])


def pytest_collection_finish():
    """What was imported stays, and need not be searched whenever garbage is collected."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _files_are_not_flushed() -> Iterator[None]:
    """A flush to the disk takes milliseconds, thousands of times, and no test pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: os.fstat(handle) and None)
        yield


@pytest.fixture(autouse=True)
def _process_left_alone():
    """What a test may not leave changed, whatever it called; random states are the tests' own to seed."""
    state_guard.watch_integrations()
    state_guard.violations.clear()
    before = state_guard.snapshot(state_guard.SETTINGS)
    yield
    changed = state_guard.changed(state_guard.SETTINGS, before, state_guard.snapshot(state_guard.SETTINGS))
    assert not state_guard.violations + changed


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = os.environ.get("ATENT_DATA")
    if root and Path(root).is_dir():
        return Path(root)
    reason = "ATENT_DATA does not name a folder with the real data sets"
    if os.environ.get("ATENT_REQUIRE_DATA"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def writes_programs() -> None:
    """An older torch writes exported programs in a format that is refused."""
    from atent_ext.core.errors import BadInput  # not before the guard watches
    from atent_ext.models import programs

    try:
        programs.check_torch()
    except BadInput as error:
        pytest.skip(str(error))


@pytest.fixture
def warm_processes() -> Iterator[None]:
    with warm.starts():
        yield


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background, whose processes begin deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
