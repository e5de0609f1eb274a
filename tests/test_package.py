"""What a wheel holds, and that it works where there is no checkout."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from atent_ext.core.version import __version__

ROOT = Path(__file__).resolve().parent.parent
MAY_HOLD = re.compile(
    r"""atent_ext/( ([a-z_]+/)*[a-z0-9_]+\.py | py\.typed | ([a-z_]+/)*__init__\.pyi
        | leaderboard/templates/[a-z]+\.(html|css|js)
        | _protocols/( (papers/)?[a-z0-9+-]+\.yaml | fast\.json )
        | _registry/( README\.md | recipes/[a-z0-9_-]+\.yaml | weights/[\w.-]+\.safetensors
            | cards/(\.gitkeep | [\w.-]+/(Linf|L2)-[\w.-]+/[\w.-]+\.(json|png)) ) )
    | atent_ext-[\w.]+\.dist-info/(METADATA | RECORD | WHEEL | entry_points\.txt | licenses/LICENSE)""",
    re.VERBOSE,
)


ELSEWHERE = {f"mnist-linf-{name}" for name in ("atent-48", "entropy-sgd", "mma", "sgd")}
"""Weights that stay in the repository, since nobody is sent to them."""


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """A function that runs a command of a fresh environment in a folder that was empty.

    The wheel alone is installed there; what it depends on comes from this environment, after it on the path.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    venv, work = folder / "venv", folder / "work"
    work.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    run(sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "neighbours.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ATENT_DATA")}
    return lambda name, *arguments: run(venv / "bin" / name, *arguments, cwd=work, env=environment)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if not MAY_HOLD.fullmatch(name)] == []
    assert len(names) == len(set(names))


def test_the_wheel_holds_all_of_the_package(wheel):
    homes = {"atent_ext": "atent_ext", "registry": "atent_ext/_registry", "eval/protocols": "atent_ext/_protocols"}
    expected = {
        f"{inside}/{path.relative_to(ROOT / home).as_posix()}"
        for home, inside in homes.items()
        for suffix in ("py", "pyi", "typed", "html", "css", "js", "yaml", "json", "safetensors")
        for path in (ROOT / home).rglob(f"*.{suffix}")
    }
    assert {"atent_ext/py.typed", "atent_ext/leaderboard/templates/board.js", "atent_ext/__init__.pyi"} <= expected
    missing = expected - set(zipfile.ZipFile(wheel).namelist())
    assert {Path(name).stem for name in missing} == ELSEWHERE


def test_the_wheel_is_small(wheel):
    """The code, protocols and recipes took 0.56 MB on 2026-11-28; cards and weights may add to it."""
    data = ("atent_ext/_registry/cards/", "atent_ext/_registry/weights/")
    sizes = {entry.filename: entry.compress_size for entry in zipfile.ZipFile(wheel).infolist()}
    assert sum(size for name, size in sizes.items() if not name.startswith(data)) < 600_000
    assert max(sizes.values()) < 5_000_000
    weights = [entry.file_size for entry in zipfile.ZipFile(wheel).infolist() if entry.filename.startswith(data[1])]
    assert 5_000_000 < sum(weights) <= 12_000_000


PROGRAM = """
import json, sys
import atent_ext, atent_ext.training.recipes as r; from atent_ext.evaluation import load_protocol
from atent_ext.experiments.study import load
print(atent_ext.__file__, len(r.names()), load_protocol('quick').name, load('v2-table1').name)

from atent_ext.cli import app
for command in json.loads(sys.argv[1]):
    sys.argv = ["atent", *command]
    try:
        app.main()
    except SystemExit as end:
        if end.code:
            raise
"""
"""What is found, then commands, in one process, which imports once what they share."""


@pytest.mark.integration
def test_the_wheel_finds_its_data_trains_scores_and_writes_the_board_without_the_checkout(elsewhere):
    assert elsewhere("atent", "--version").strip() == f"atent-ext {__version__}"
    commands = [
        ["ls", "recipes"],
        ["board", "--out", "site"],
        ["train", "digits-linf-sgd", "--set", "epochs=1", "--set", "validation.count=50", "--out", "run"],
        ["eval", "run", "--protocol", "quick", "--n", "20"],
    ]
    found, output = elsewhere("python", "-c", PROGRAM, json.dumps(commands)).split("\n", 1)
    place, recipes, protocol, study = found.split()
    assert "elsewhere" in place
    assert Path(place).parent.parent.name == "site-packages"
    shipped = [path for path in (ROOT / "registry" / "recipes").glob("*.yaml") if not path.name.startswith("_")]
    assert (int(recipes), protocol, study) == (len(shipped), "quick", "v2-table1")
    for part in ("mnist-linf-atent", Path("site", "index.html").as_posix(), "trained: run", "worst case"):
        assert part in output


@pytest.mark.integration
@pytest.mark.data
def test_the_wheel_reproduces_a_cards_clean_accuracy_to_the_example(elsewhere, data_root):
    card = json.loads((ROOT / "registry/cards/mnist/Linf-0.3/mnist-linf-atent.json").read_text())
    clean = card["report"]["results"][0]
    given = ("--protocol", "clean", "--n", clean["n"], "--data-root", data_root.resolve(), "--out", "clean.json")
    output = elsewhere("atent", "eval", "mnist-linf-atent", *given)
    assert f"{clean['correct']}/{clean['n']}" in output
    flags = elsewhere("python", "-c", "import json; print(json.load(open('clean.json'))['results'][0]['flags'])")
    assert flags.strip() == clean["flags"]


def test_registry_and_eval_hold_no_package():
    assert list((ROOT / "registry").rglob("*.py")) == []
    assert list((ROOT / "eval").rglob("__init__.py")) == []
