"""docs/results.md is what its command writes from the committed results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = [path for path in (ROOT / "eval" / "results").glob("*.json") if path.stem.endswith(("-cpu", "-full"))]


def test_the_page_is_what_the_command_writes(tmp_path):
    out = tmp_path / "results.md"
    command = [sys.executable, str(ROOT / "eval" / "pages" / "write_results.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert out.read_text(encoding="utf-8") == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_a_committed_result_says_what_its_numbers_are_of(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem == f"{result['study']}-{result['scale']}"
    assert {"seed", "batch_size", "versions", "machine", "command"} <= result.keys()
    for row in result["rows"]:
        for name, cell in row.get("cells", {}).items():
            if "skipped" not in cell:
                assert len(cell["flags"]) == cell["n"] == cell["asked"]["n"], (row["name"], name)
                assert cell["flags"].count("1") == cell["correct"]
                assert cell["accuracy"] == cell["correct"] / cell["n"]


def test_there_are_results():
    assert {"v2-table1-cpu", "v2-table2-cpu", "v2-table6-cpu", "v1-fig1-cpu", "v1-table1-mnist-cpu"} <= {
        path.stem for path in RESULTS
    }
