"""What an installed wheel holds, and that it finds its data without the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return next(out.glob("*.whl"))


def test_only_one_package_reaches_site_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"atent_ext"}
    assert "atent_ext/py.typed" in names
    assert "atent_ext/_registry/recipes/mnist-linf-atent.yaml" in names
    assert "atent_ext/_protocols/autoattack.yaml" in names
    assert "atent_ext/_protocols/papers/v2-table1.yaml" in names
    assert {f"atent_ext/_board/{name}" for name in ("index.html", "model.html", "board.css", "board.js")} <= set(names)
    assert not [name for name in names if name.endswith((".npz", ".pt", ".safetensors"))]


def test_the_wheel_finds_its_data_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import atent_ext, atent_ext.recipes as r; from atent_ext.evaluation import load_protocol\n"
        "from atent_ext.papers.study import load\n"
        "print(atent_ext.__file__, len(r.names()), load_protocol('quick').name, load('v2-table1').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    place, recipes, protocol, study = done.stdout.split()
    assert Path(place).parent == tmp_path / "atent_ext"
    shipped = [path for path in (ROOT / "registry" / "recipes").glob("*.yaml") if not path.name.startswith("_")]
    assert (int(recipes), protocol, study) == (len(shipped), "quick", "v2-table1")


def test_registry_and_eval_hold_no_package():
    assert list((ROOT / "registry").rglob("*.py")) == []
    assert list((ROOT / "eval").rglob("__init__.py")) == []
