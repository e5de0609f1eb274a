import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch import nn

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.registry import DATASETS, MODELS, OBJECTIVES, files, nearest, resolve

ROOT = Path(__file__).parents[2]


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_resolves(name):
    method = resolve("objective", name)
    settings = {"eps": 0.1, "steps": 2, "step_size": 0.05, "least": 0.05, "sigma": 0.1}
    needed = [f.name for f in dataclasses.fields(method) if f.init and f.default is dataclasses.MISSING]
    assert method(**{field: settings[field] for field in needed}).terms >= 1


@pytest.mark.parametrize("name", MODELS)
def test_every_model_resolves(name):
    factory = resolve("model", name)
    assert {"classes", "channels"} <= set(inspect.signature(factory).parameters)
    assert not inspect.isclass(factory) or issubclass(factory, nn.Module)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_resolves(name):
    assert inspect.isfunction(resolve("data set", name))


def test_names_are_those_of_the_issue():
    assert {"sgd", "pgd-at", "trades", "mart", "mma", "atent", "desgd"} <= set(OBJECTIVES)
    assert {"gaussian-noise", "smooth-adv", "smooth-trades"} <= set(OBJECTIVES)
    assert {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100"} <= set(DATASETS)
    assert {"digits-cnn", "small-cnn", "lenet5-madry", "resnet-18", "resnet-20", "wrn-34-10", "vgg-11"} <= set(MODELS)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"^unknown objective 'atnet'; did you mean 'atent'\?$"):
        resolve("objective", "atnet")
    with pytest.raises(BadInput, match=r"^unknown data set 'zzz'; known: cifar10, cifar100, digits, fashion-mnist, "):
        resolve("data set", "zzz")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mnist-linf-atnet", "did you mean 'mnist-linf-atent'?"),
        ("qqqq", "known: digits-linf-sgd, mnist-linf-atent"),
        ("", "known: digits-linf-sgd, mnist-linf-atent"),
    ],
)
def test_nearest_names_one_that_is_close_or_else_all(name, hint):
    known = {"mnist-linf-atent": 1, "digits-linf-sgd": 2}
    assert str(nearest("recipe", name, known)) == f"unknown recipe {name!r}; {hint}"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("wrn-28-10", "of its kind there are wrn-34-10, wrn-70-16"),
        ("wnr-28-10", "of its kind there are wrn-34-10, wrn-70-16"),
        ("wrn34-10", "did you mean 'wrn-34-10'?"),
        ("resnet-50", "of its kind there are resnet-18, resnet-20"),
        ("resnt-20", "did you mean 'resnet-20'?"),
        ("resnet", "of its kind there are resnet-18, resnet-20"),
        ("vgg-16", "of its kind there is vgg-11"),
        ("vgg", "did you mean 'vgg-11'?"),
    ],
)
def test_a_name_of_another_size_is_never_suggested_as_the_one_that_was_meant(name, remedy):
    known = ("wrn-34-10", "wrn-70-16", "resnet-18", "resnet-18-pyautoattack", "resnet-20", "vgg-11", "small-cnn")
    assert str(nearest("model", name, known)) == f"unknown model {name!r}; {remedy}"


@pytest.mark.parametrize(
    ("kind", "folder", "some"),
    [
        ("recipe", ROOT / "registry/recipes", {"digits-linf-atent", "mnist-linf-atent", "cifar10-l2-trades"}),
        ("protocol", ROOT / "eval/protocols", {"autoattack", "pgd", "quick"}),
    ],
)
def test_files_finds_what_is_shipped(kind, folder, some):
    paths = files(kind)
    assert some <= set(paths)
    assert list(paths) == sorted(path.stem for path in folder.glob("*.yaml"))
    assert all(path.samefile(folder / f"{name}.yaml") for name, path in paths.items())
    assert all(isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict) for path in paths.values())


def test_files_prefers_the_wheels_folder_and_takes_yaml_only(monkeypatch, tmp_path):
    wheel, checkout = tmp_path / "wheel", tmp_path / "checkout"
    for folder, names in ((wheel, ("b.yaml", "a.yaml", "README.md")), (checkout, ("c.yaml",))):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    monkeypatch.setitem(registry._FOLDERS, "recipe", (wheel, checkout))
    assert files("recipe") == {"a": wheel / "a.yaml", "b": wheel / "b.yaml"}
    monkeypatch.setitem(registry._FOLDERS, "recipe", (tmp_path / "none", checkout))
    assert files("recipe") == {"c": checkout / "c.yaml"}


def test_a_package_without_its_files_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(registry._FOLDERS, "protocol", (tmp_path / "none",))
    with pytest.raises(BadInput, match="lacks its protocol files; reinstall atent-ext") as error:
        files("protocol")
    assert (error.value.code, error.value.field) == ("missing", "protocol")


def test_importing_changes_and_loads_nothing():
    """The package, its kernel and its lists load no neighbour; the attacks load advertorch and leave torch clean."""
    python(
        "import importlib, sys\n"
        "import atent_ext\n"
        "def loaded():\n"
        "    heavy = {'advertorch', 'matplotlib', 'accelerate', 'pyautoattack', 'autoattack', 'robustbench'}\n"
        "    return (heavy | {'torchattacks', 'torchvision', 'sklearn', 'scipy'}) & set(sys.modules)\n"
        "def gradcheck():\n"
        "    return importlib.import_module('torch.autograd.gradcheck')\n"
        "assert not loaded(), loaded()\n"
        "assert not hasattr(gradcheck(), 'zero_gradients')\n"
        "from atent_ext.core import errors, losses, model_state, norms, registry, types, validate\n"
        "from atent_ext.attacks import langevin\n"
        "from atent_ext.objectives import ATENT\n"
        "assert registry.files('recipe') and registry.nearest('model', 'vgg', registry.MODELS)\n"
        "assert not loaded(), loaded()\n"
        "from atent_ext.attacks import LinfATENTAttack\n"
        "assert 'advertorch' in loaded() and 'accelerate' not in loaded()\n"
        "assert not hasattr(gradcheck(), 'zero_gradients')\n"
    )
