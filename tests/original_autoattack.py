"""Puts the stand-in of the original AutoAttack in place, in this process or in another."""

import importlib
import sys
from pathlib import Path

STAND_INS = Path(__file__).parent / "stand_ins"
"""A folder for PYTHONPATH, or for `sys.path`, in which the package `autoattack` lies."""


def choose(monkeypatch, package):
    """Until the end of the test, `package` ("autoattack" or "pyautoattack") is the AutoAttack that is installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "autoattack"]:
        monkeypatch.delitem(sys.modules, name)
    if package == "pyautoattack":
        monkeypatch.setitem(sys.modules, "autoattack", None)  # no such package
        return
    monkeypatch.syspath_prepend(STAND_INS)
    for name in ("autoattack", "autoattack.checks", "autoattack.state", "autoattack.autoattack"):
        monkeypatch.setitem(sys.modules, name, None)  # so that it is as before afterwards
        del sys.modules[name]
        importlib.import_module(name)
