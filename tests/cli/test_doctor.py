import importlib
import io
import json
import re
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from commands import atent, refused
from rich.console import Console

from atent_ext.cli import doctor
from atent_ext.cli.console import doctor_table
from atent_ext.core.errors import BadInput

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
# Runs the command and then says on stderr which neighbours it imported itself.
WATCHED = """
import sys
from atent_ext.cli import app, doctor
try:
    app.main()
finally:
    print(sorted({n.module for n in doctor.NEIGHBOURS.values()} & set(sys.modules)), file=sys.stderr)
"""


def there(module):
    """Whether a module is on the path; `find_spec` would also see those that another test supplied."""
    return PathFinder.find_spec(module) is not None


@pytest.fixture(scope="module")
def everything():
    command = [sys.executable, "-c", WATCHED, "doctor", "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def examined(*names):
    """Exit code and rows of `atent doctor NAMES --json`, in this process."""
    done = atent("doctor", *names, "--json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)["neighbours"]


def fake(folder, module, code, version="9.9"):
    """A package that looks installed and whose module is `code`."""
    about = folder / f"{module}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    (about / "top_level.txt").write_text(f"{module}\n")
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(code)


def hide(monkeypatch, folder, *starts):
    """An environment without the packages whose files start so: links to all the other files of site-packages."""
    path = []
    for number, entry in enumerate(map(Path, sys.path)):
        names = [item.name for item in entry.iterdir()] if entry.is_dir() else []
        if not any(name.startswith(starts) for name in names):
            path.append(str(entry))
            continue
        mirror = folder / str(number)
        mirror.mkdir(parents=True)
        for name in names:
            if not name.startswith(starts):
                (mirror / name).symlink_to(entry / name)
        path.append(str(mirror))
    monkeypatch.setattr(sys, "path", path)


def test_everything_that_is_installed_can_be_used(everything):
    assert everything.returncode == 0, everything.stdout
    report = json.loads(everything.stdout)
    rows = {row["neighbour"]: row for row in report["neighbours"]}
    assert list(rows) == list(doctor.NEIGHBOURS)
    assert list(rows)[:3] == ["torch", "torchvision", "accelerate"]
    assert report["device"] in ("cpu", "cuda")
    for name, row in rows.items():
        installed = there(doctor.NEIGHBOURS[name].module)
        assert (row["status"], row["reason"]) == ("ok" if installed else "not installed", None), row
        assert (row["install"] is None, bool(row["version"])) == (installed, installed)


def test_what_was_repaired_is_what_is_missing_here(everything):
    rows = {row["neighbour"]: row["repaired"] for row in json.loads(everything.stdout)["neighbours"]}
    gradcheck = importlib.import_module("torch.autograd.gradcheck")
    assert bool(rows["advertorch"]) == (not hasattr(gradcheck, "zero_gradients"))
    if there("robustbench"):
        missing = [module for module in ("autoattack", "pkg_resources") if not there(module)]
        assert [words.split()[0] for words in rows["robustbench"]] == missing
    assert not any(rows[name] for name in rows if name not in ("advertorch", "pyautoattack", "robustbench"))


def test_the_command_itself_imports_no_neighbour(everything):
    assert everything.stderr.strip() == "[]"


def test_the_table_fits_80_columns_with_every_name_in_one_piece(everything):
    out = io.StringIO()
    Console(file=out, width=80).print(doctor_table(json.loads(everything.stdout)))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    uses = [word for neighbour in doctor.NEIGHBOURS.values() for word in neighbour.use.split()]
    versions = [row["version"] or "" for row in json.loads(everything.stdout)["neighbours"]]
    for words in ("Python 3.", *doctor.NEIGHBOURS, *uses, *versions):
        assert words in text


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('hello')\nraise RuntimeError('needs\\n a newer torch')", "import: RuntimeError: needs a newer torch"),
        ("import nothing_of_that_name", "import: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise SystemExit('no')", "import: SystemExit: no"),
        ("", "use: ModuleNotFoundError: No module named 'torchattacks.attack'"),
        ("import os; os._exit(7)", "its process ended with exit code 7"),
        ("import os; os.abort()", "its process ended with signal SIGABRT"),
    ],
)
def test_what_cannot_be_used_fails_in_one_line(monkeypatch, tmp_path, code, reason):
    fake(tmp_path, "torchattacks", code)
    monkeypatch.syspath_prepend(tmp_path)
    status, (row,) = examined("torchattacks")
    assert status == 1
    assert (row["status"], row["version"]) == ("fails", "9.9")
    assert row["reason"].startswith(reason)
    assert "\n" not in row["reason"]


def test_a_process_says_it_too(tmp_path):
    fake(tmp_path, "foolbox", "raise RuntimeError('broken')")
    command = [sys.executable, "-m", "atent_ext", "doctor", "foolbox", "mair"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path), "COLUMNS": "100"})
    assert done.returncode == 1
    assert re.search(r"foolbox +│ 9.9 +│ fails: import:", done.stdout)
    assert "broken" in done.stdout
    assert done.stderr == ""


def test_what_hangs_is_given_up(monkeypatch, tmp_path):
    fake(tmp_path, "foolbox", "import time; time.sleep(100)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "TIMEOUT", 0.2)
    status, (row,) = examined("foolbox")
    assert (status, row["status"], row["reason"]) == (1, "fails", "does not end within 0.2 s")


@pytest.mark.parametrize(
    ("name", "starts", "status", "install"),
    [
        ("foolbox", "foolbox", 0, "pip install 'atent-ext[foolbox]'"),
        ("torchattacks", "torchattacks", 0, "pip install 'atent-ext[torchattacks]'"),
        ("mair", "mair", 0, "pip install git+https://github.com/Harry24k/MAIR"),
        ("advertorch", "advertorch", 1, "pip install --upgrade atent-ext"),  # we cannot work without it
    ],
)
def test_what_is_not_there_is_not_installed(monkeypatch, tmp_path, name, starts, status, install):
    hide(monkeypatch, tmp_path, starts)
    code, (row,) = examined(name)
    assert (code, row["status"], row["version"], row["install"]) == (status, "not installed", None, install), row
    table = atent("doctor", name, width=80).stdout
    assert "not installed" in table
    assert install in " ".join(re.sub(r"[│┃]", " ", table).split())


def test_another_package_of_the_same_module_name_is_not_art(monkeypatch, tmp_path):
    hide(monkeypatch, tmp_path, "art", "adversarial_robustness_toolbox", "adversarial-robustness-toolbox")
    fake(tmp_path / "other", "art", "", version="6.5")
    sys.path.insert(0, str(tmp_path / "other"))
    code, (row,) = examined("art")
    assert (code, row["status"], row["install"]) == (0, "not installed", "pip install 'atent-ext[art]'"), row


def test_half_an_installation_fails(monkeypatch, tmp_path):
    hide(monkeypatch, tmp_path, "foolbox")
    fake(tmp_path / "half", "foolbox", "")
    (tmp_path / "half" / "foolbox" / "__init__.py").unlink()
    (tmp_path / "half" / "foolbox").rmdir()
    sys.path.insert(0, str(tmp_path / "half"))
    code, (row,) = examined("foolbox")
    assert (code, row["reason"]) == (1, "foolbox 9.9 is installed, but its module is not; reinstall it")


def test_a_folder_of_the_same_name_in_the_current_folder_is_not_imported(monkeypatch, tmp_path):
    hide(monkeypatch, tmp_path / "hidden", "foolbox")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    fake(tmp_path, "foolbox", "raise RuntimeError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    code, (row,) = examined("foolbox")
    assert (code, row["status"]) == (0, "not installed")


def test_an_unknown_neighbour_is_refused_with_the_nearest():
    done = atent("doctor", "foolbx")
    refused(done, "atent: unknown neighbour 'foolbx'; did you mean 'foolbox'?")
    assert done.stdout == ""
    with pytest.raises(BadInput, match="unknown neighbour 'zzz'; known: accelerate, "):
        doctor.check(["torch", "zzz"])


def test_the_extras_that_it_names_exist():
    described = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for neighbour in doctor.NEIGHBOURS.values():
        if neighbour.extra and "://" not in neighbour.extra:
            assert re.search(rf"^{neighbour.extra} = \[\"{neighbour.distribution}[=>]", described, re.MULTILINE)
