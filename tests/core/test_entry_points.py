"""Another package brings objective, model, data set and recipe by entry points, and the command line uses them."""

import json
import os
import subprocess
import sys
from textwrap import dedent

import pytest
from commands import atent, refused

from atent_ext.core import registry
from atent_ext.core.errors import BadInput

pytestmark = pytest.mark.integration

PROJECT = """
    [build-system]
    requires = ["hatchling"]
    build-backend = "hatchling.build"

    [project]
    name = "atent-plug"
    version = "1.2"

    [project.entry-points."atent_ext.objectives"]
    level = "atent_plug.parts:Level"

    [project.entry-points."atent_ext.models"]
    brightest = "atent_plug.parts:brightest"

    [project.entry-points."atent_ext.datasets"]
    three-pixels = "atent_plug.parts:three_pixels"

    [project.entry-points."atent_ext.recipes"]
    recipes = "atent_plug.recipes"

    [tool.hatch.build.targets.wheel]
    packages = ["atent_plug"]
"""

# Everything about it is known: the loss is the level, its gradient zero, and the network right wherever the brightest
# pixel stays the brightest: inside ℓ∞ radius 1/2.
PARTS = """
    from dataclasses import dataclass

    import torch
    from torch import nn

    from atent_ext.data import DataSet, Split


    @dataclass(frozen=True, kw_only=True)
    class Level:
        level: float = 1.0
        terms: int = 1

        def scaled(self, factor):
            return self

        def __call__(self, model, x, y, index=None, *, generator=None):
            yield self.level + 0 * model(x).sum()


    def brightest(classes=3, channels=1):
        network = nn.Sequential(nn.Flatten(), nn.Linear(3, classes, bias=False))
        nn.init.eye_(network[1].weight)
        return network


    def three_pixels(root, download):
        labels = torch.arange(30) % 3
        split = Split(torch.eye(3)[labels].reshape(30, 1, 1, 3), labels)
        return DataSet("three-pixels", ("left", "middle", "right"), split, split, "three pixels, one of them bright")
"""

RECIPE = """
    name: plug-linf-level
    description: A level on three pixels.
    dataset: three-pixels
    threat: {norm: Linf, eps: 0.45}
    model: {name: brightest}
    objective: {name: level, level: 2.5}
    optimizer: {name: sgd, lr: 0.1}
    epochs: 3
    batch_size: 5
    validation: {count: 6, steps: 2}
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text).lstrip(), encoding="utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which pip has installed the package `atent-plug`."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    write(source / "pyproject.toml", PROJECT)
    write(source / "atent_plug" / "__init__.py", "")
    write(source / "atent_plug" / "parts.py", PARTS)
    write(source / "atent_plug" / "recipes" / "plug-linf-level.yaml", RECIPE)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", target, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def listed(kind):
    done = atent("ls", kind)
    assert done.returncode == 0, done.stderr
    return done.stdout


def claim(folder, group, line, package="rival"):
    """A package that is nothing but its entry point."""
    about = folder / f"{package}-3.0.dist-info"
    write(about / "METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 3.0\n")
    write(about / "entry_points.txt", f"[atent_ext.{group}]\n{line}\n")


@pytest.fixture
def shell(installed):
    """The command in a process of its own, where the package is installed."""
    environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200"}

    def run(*arguments):
        command = [sys.executable, "-m", "atent_ext", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_packages_are_asked_once_until_one_comes(tmp_path, monkeypatch):
    """All installed packages are read for an answer, which takes some 20 ms; a recipe asks five times."""
    asked = []
    ask = registry.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or ask(group=group))
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(3):
        assert "level" not in registry.entries("objective")
    assert len(asked) == 1
    claim(tmp_path, "objectives", "level = rival.parts:Level")
    assert registry.entries("objective")["level"] == "rival.parts:Level"
    assert len(asked) == 2


def test_another_packages_recipe_is_listed_and_so_are_its_parts(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    monkeypatch.delitem(sys.modules, "atent_plug.parts", raising=False)
    recipes = listed("recipes")
    assert "(from atent-plug) A level on three pixels." in recipes
    assert "digits-linf-atent" in recipes
    targets = {"level": "Level", "brightest": "brightest", "three-pixels": "three_pixels"}
    for kind, (name, target) in zip(("objectives", "models", "datasets"), targets.items(), strict=True):
        (line,) = [line for line in listed(kind).splitlines() if line.startswith(f"{name} ")]
        assert line.split(None, 1)[1] == f"atent_plug.parts:{target} (from atent-plug)"
    assert "atent_plug.parts" not in sys.modules


def test_another_packages_recipe_trains_with_its_objective_on_its_data(shell, tmp_path):
    output = shell("train", "plug-linf-level", "--set", "epochs=1", "--set", "objective.level=7", "--out", tmp_path)
    (metrics,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (metrics["loss"], metrics["clean"], metrics["robust"]) == (7.0, 1.0, 1.0)
    assert "plug-linf-level epoch 1: loss 7.0000, validation clean 100.0%, robust 100.0%" in output


def test_a_run_is_scored_and_its_radius_counts(installed, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(installed)
    wider = ["--set", "threat.eps=0.55", "--set", "epochs=1"]
    assert atent("train", "plug-linf-level", *wider, "--out", tmp_path).returncode == 0
    (metrics,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (metrics["loss"], metrics["clean"], metrics["robust"]) == (2.5, 1.0, 0.0)
    done = atent("eval", tmp_path, "--protocol", "quick", "--eps", 0.45, "--out", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert {result["correct"] for result in report["results"]} == {30}
    assert (report["data"], report["model"]) == ("three-pixels", "brightest")


def test_installed_twice_is_not_a_clash(installed, monkeypatch, tmp_path):
    (tmp_path / "again").symlink_to(installed)
    monkeypatch.syspath_prepend(installed)
    monkeypatch.syspath_prepend(tmp_path / "again")
    assert registry.entries("objective")["level"] == "atent_plug.parts:Level"
    assert "plug-linf-level" in registry.files("recipe")


@pytest.mark.parametrize(
    ("group", "line", "kind"),
    [
        ("objectives", "trades = rival.parts:TRADES", "objective 'trades'"),
        ("models", "resnet-18 = rival.parts:resnet", "model 'resnet-18'"),
        ("datasets", "digits = rival.parts:digits", "data set 'digits'"),
    ],
)
def test_a_name_that_is_taken_is_one_line_that_names_the_package(monkeypatch, tmp_path, group, line, kind):
    claim(tmp_path, group, line)
    monkeypatch.syspath_prepend(tmp_path)
    taken = kind.partition("'")[2].strip("'")
    with pytest.raises(BadInput, match=r"'rival' .*uninstall one of them") as caught:
        registry.resolve(kind.partition(" '")[0], taken)
    assert kind in str(caught.value)
    assert (caught.value.code, caught.value.field) == ("conflict", kind.partition(" '")[0])
    listed(group)  # who does not ask for it is not disturbed


def test_a_recipe_name_that_is_taken_names_package_and_file(monkeypatch, tmp_path):
    claim(tmp_path, "recipes", "recipes = rival_recipes")
    write(tmp_path / "rival_recipes" / "__init__.py", "")
    write(tmp_path / "rival_recipes" / "digits-linf-sgd.yaml", RECIPE)
    write(tmp_path / "rival_recipes" / "_digits-linf.yaml", RECIPE)  # a base is its recipes' own: no clash
    monkeypatch.syspath_prepend(tmp_path)
    out = listed("recipes")
    assert "note: the package 'rival' brings a recipe 'digits-linf-sgd'" in out
    assert out.count("note:") == 1
    assert registry.files("recipe")["digits-linf-sgd"].parent != tmp_path / "rival_recipes"


def test_an_objective_that_is_no_dataclass_is_refused(monkeypatch, tmp_path):
    claim(tmp_path, "objectives", "best = rival_parts:Best")
    write(tmp_path / "rival_parts.py", "class Best:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rival_parts", raising=False)
    best = ["train", "digits-linf-sgd", "--set", "objective.name=best", "--out", tmp_path / "run"]
    refused(atent(*best), "objective 'best'", "a dataclass is needed")


METHOD = """
    from dataclasses import dataclass
    {imported}

    @dataclass(frozen=True, kw_only=True)
    class Best{base}:
        eps: float = 0.1
        step_size: float | None = None

        def {method}(self, model, x, y, *, generator=None):
            return model(x).square().mean()
"""


def trained_by_best(monkeypatch, tmp_path, **parts):
    claim(tmp_path, "objectives", "best = rival_parts:Best")
    write(tmp_path / "rival_parts.py", dedent(METHOD.format(**parts)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rival_parts", raising=False)
    few = ["epochs=1", "eps_ramp=0.5", "validation.count=1300", "objective={name: best, eps: 0.2}"]
    return atent("train", "digits-linf-sgd", *(part for one in few for part in ("--set", one)), "--out", tmp_path / "r")


def test_a_method_of_one_term_needs_a_loss_alone(monkeypatch, tmp_path):
    imported = "from atent_ext.objectives import SingleTerm"
    done = trained_by_best(monkeypatch, tmp_path, imported=imported, base="(SingleTerm)", method="loss")
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] > 0


@pytest.mark.parametrize(
    ("base", "method", "lacking"),
    [("", "loss", "no __call__ and no scaled and no terms"), ("(SingleTerm)", "value", "no loss")],
)
def test_a_method_that_cannot_train_is_refused_before_anything_is_written(monkeypatch, tmp_path, base, method, lacking):
    imported = "from atent_ext.objectives import SingleTerm"
    done = trained_by_best(monkeypatch, tmp_path, imported=imported, base=base, method=method)
    refused(done, f"objective 'best' has {lacking}; ", "SingleTerm")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_of_that_name", ["ModuleNotFoundError", "nothing_of_that_name"]),
        ("raise RuntimeError('two\\nlines')", ["RuntimeError: two lines"]),
        ("def broken(:", ["SyntaxError"]),
        ("", ["AttributeError", "Best"]),
        ("Best = 3", ["is a int", "class or a function"]),
    ],
)
def test_an_entry_that_does_not_import_is_one_line(monkeypatch, tmp_path, code, words):
    claim(tmp_path, "objectives", "best = rival_parts:Best")
    write(tmp_path / "rival_parts.py", code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rival_parts", raising=False)
    best = ["train", "digits-linf-sgd", "--set", "objective.name=best", "--out", tmp_path / "run"]
    refused(atent(*best), "objective 'best'", "'rival'", "rival_parts:Best", *words)
    assert not (tmp_path / "run").exists()
    (line,) = [line for line in listed("objectives").splitlines() if line.startswith("best ")]  # nobody is disturbed
    assert line.split(None, 1)[1] == "rival_parts:Best (from rival)"


@pytest.mark.parametrize("place", ["nowhere", "nowhere.recipes", "rival_parts", "whole.recipes"])
def test_recipes_in_what_is_no_package_are_noted_and_disturb_nobody(monkeypatch, tmp_path, place):
    claim(tmp_path, "recipes", f"recipes = {place}")
    write(tmp_path / "rival_parts.py", "")
    write(tmp_path / "whole" / "__init__.py", "")
    monkeypatch.syspath_prepend(tmp_path)
    out = listed("recipes")
    assert f"note: the package 'rival' registers recipes in {place!r}, which is no package" in out


def test_listing_recipes_imports_no_package(monkeypatch, tmp_path):
    claim(tmp_path, "recipes", "recipes = broken.recipes")
    write(tmp_path / "broken" / "__init__.py", "raise RuntimeError('broken')")
    write(tmp_path / "broken" / "recipes" / "bad.yaml", "name: bad")
    monkeypatch.syspath_prepend(tmp_path)
    out = listed("recipes")
    assert "note: bad cannot be used: recipe bad lacks dataset, threat, objective, model, description" in out
    (bad,) = [entry for entry in json.loads(atent("ls", "recipes", "--json").stdout) if entry["name"] == "bad"]
    assert (bad["package"], bad["fault"].split()[:3]) == ("rival", ["recipe", "bad", "lacks"])


def test_what_we_ship_wins_no_error_of_its_own(monkeypatch):
    monkeypatch.setitem(registry.OBJECTIVES, "lost", "atent_ext.nowhere:Lost")
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        registry.resolve("objective", "lost")
    with pytest.raises(BadInput, match="did you mean 'lost'"):
        registry.resolve("objective", "last")
