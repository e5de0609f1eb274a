"""docs/results.md, docs/log/ and the README's results are what their scripts write from the committed results."""

import json
import shutil
import subprocess
import sys

import pytest
import scripts

RESULTS = [path for path in (scripts.EVAL / "results").glob("*.json") if path.stem.endswith(("-cpu", "-full"))]
DOCS = scripts.EVAL.parent / "docs"


@pytest.mark.integration
def test_the_results_are_what_their_script_writes_as_a_user_runs_it(tmp_path):
    (tmp_path / "log").mkdir()
    readme = shutil.copy(DOCS.parent / "README.md", tmp_path)
    command = [sys.executable, str(scripts.EVAL / "pages" / "write_results.py"), "--docs", str(tmp_path)]
    command += ["--readme-file", readme]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for page in ("results.md", "log/comparisons.md", "log/papers.md", "../README.md"):
        written = tmp_path / page.removeprefix("../")
        assert written.read_text(encoding="utf-8") == (DOCS / page).read_text(encoding="utf-8"), page


def test_the_zoo_is_what_its_script_writes(tmp_path):
    done = scripts.run("pages/write_zoo", "--out", tmp_path / "zoo.md")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "zoo.md").read_text(encoding="utf-8") == (DOCS / "log" / "zoo.md").read_text(encoding="utf-8")


def test_the_page_on_intervals_is_what_its_script_writes(tmp_path):
    done = scripts.run("pages/write_anytime", "--out", tmp_path / "anytime.md")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "anytime.md").read_text(encoding="utf-8") == (DOCS / "anytime.md").read_text(encoding="utf-8")


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
