"""`eval/stress/matrix.sh` finds the lower bounds of pyproject.toml; installing and testing take half an hour."""

import subprocess

import scripts

PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then
    echo 3.11
else
    mkdir -p "$4/bin" && printf '#!/bin/sh\\nexit 7\\n' >"$4/bin/pip" && chmod +x "$4/bin/pip"
fi
"""
"""Stands in for an interpreter: `python -m venv --clear FOLDER` makes one whose pip fails."""


def test_the_lower_bounds_are_found(tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON, encoding="utf-8")
    python.chmod(0o755)
    script = scripts.EVAL / "stress" / "matrix.sh"
    done = subprocess.run(["bash", script, "-p", python, "-d", tmp_path, "oldest"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")
    bounds = (tmp_path / "oldest-3.11" / "constraints.txt").read_text(encoding="utf-8").split()
    assert {"torch==2.4", "numpy==1.26", "robustbench==1.1.1"} <= set(bounds)
    assert not any("mkdocs" in bound or "pytest" in bound for bound in bounds)
