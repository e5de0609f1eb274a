import importlib
import importlib.util
import inspect
import logging
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from original_autoattack import choose
from problems import OnlyBuffers
from torch import nn

from atent_ext.core import compat
from atent_ext.core.errors import BadInput, MissingExtra

pyautoattack = pytest.importorskip("pyautoattack")
LOGGER = logging.getLogger("auto-attack")


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def problem(images=12, classes=5):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    x = torch.rand(images, 1, 4, 4)
    return model, x, model(x).argmax(1)


def small(kind, model, **arguments):
    """An AutoAttack of two short attacks, set up through the attributes that users set."""
    attack = kind(model, norm="Linf", eps=0.05, seed=3, **arguments)
    attack.attacks_to_run = ["apgd-ce", "fab"]
    attack.apgd.n_restarts = attack.fab.n_restarts = 1
    attack.apgd.n_iter = attack.fab.n_iter = 10
    return attack


@pytest.fixture(params=["pyautoattack", "autoattack"])
def adapter(request, monkeypatch):
    """The class on pyautoattack, and on the original (a stand-in of it)."""
    choose(monkeypatch, request.param)
    return compat.autoattack_class()


def test_importing_changes_and_loads_nothing():
    python(
        "import sys, importlib, atent_ext, atent_ext.core.compat\n"
        "neighbours = {'advertorch', 'autoattack', 'pyautoattack', 'robustbench', 'torchattacks', 'pkg_resources'}\n"
        "assert not neighbours & set(sys.modules), neighbours & set(sys.modules)\n"
        "assert not hasattr(importlib.import_module('torch.autograd.gradcheck'), 'zero_gradients')"
    )


def test_advertorch_imports_and_its_fab_attack_runs():
    out = python(
        "import importlib, torch, warnings\n"
        "from atent_ext import compat\n"
        "warnings.simplefilter('error')\n"
        "package = compat.advertorch()\n"
        "assert not hasattr(importlib.import_module('torch.autograd.gradcheck'), 'zero_gradients')\n"
        "import advertorch.attacks, advertorch.test_utils, advertorch_examples.models\n"
        "assert compat.advertorch() is package is advertorch\n"
        "torch.manual_seed(0)\n"
        "model = torch.nn.Linear(4, 3)\n"
        "x = torch.rand(6, 4)\n"
        "y = model(x).argmax(1)\n"
        "adversaries = advertorch.attacks.LinfFABAttack(model, n_iter=20, eps=1.0).perturb(x, y)\n"
        "print(int((model(adversaries).argmax(1) != y).sum()))"
    )
    assert int(out) > 0


def test_advertorch_leaves_a_function_that_someone_else_put_there(monkeypatch):
    gradcheck = importlib.import_module("torch.autograd.gradcheck")
    assert compat.advertorch() is importlib.import_module("advertorch")
    assert not hasattr(gradcheck, "zero_gradients")
    own = object()
    monkeypatch.setattr(gradcheck, "zero_gradients", own, raising=False)
    compat.advertorch()
    assert gradcheck.zero_gradients is own


def test_zero_gradients_clears_tensors_alone_and_in_a_list():
    with_grad, without = torch.ones(2, requires_grad=True), torch.ones(2)
    for argument in (with_grad, [with_grad, without]):
        with_grad.sum().backward()
        compat._zero_gradients(argument)
        assert torch.equal(with_grad.grad, torch.zeros(2))
    assert without.grad is None


@pytest.mark.skipif(importlib.util.find_spec("robustbench") is None, reason="robustbench is not installed")
def test_robustbench_imports():
    python(
        "import sys, importlib.util, warnings\n"
        "from pathlib import Path\n"
        "from atent_ext import compat\n"
        "supplied = importlib.util.find_spec('pkg_resources') is None\n"
        "warnings.simplefilter('error')\n"
        "robustbench = compat.robustbench()\n"
        "assert callable(robustbench.utils.load_model) and callable(robustbench.benchmark)\n"
        "assert not (supplied and 'pkg_resources' in sys.modules)\n"
        "from autoattack import AutoAttack\n"
        "from autoattack.state import EvaluationState\n"
        "assert AutoAttack is compat.autoattack_class() is robustbench.eval.AutoAttack\n"
        "assert EvaluationState is not robustbench.eval.EvaluationState\n"
        "names = 'helper_files/imagenet_test_image_ids.txt'\n"
        "assert Path(robustbench.loaders.pkg_resources.resource_filename('robustbench.loaders', names)).is_file()\n"
        "assert importlib.util.find_spec('autoattack').name == 'autoattack'"
    )


def test_robustbench_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(MissingExtra, match=r"pip install 'atent-ext\[robustbench\]'") as error:
        compat.robustbench()
    assert (error.value.code, error.value.field) == ("missing-extra", "robustbench")


def test_the_autoattack_that_robustbench_imports(monkeypatch):
    for name in ("autoattack", "autoattack.state", "pkg_resources"):
        monkeypatch.setitem(sys.modules, name, None)
    compat._supply_autoattack()
    assert sys.modules["autoattack"].AutoAttack is compat.autoattack_class()
    assert sys.modules["autoattack"].state is sys.modules["autoattack.state"]
    with compat._pkg_resources():
        path = sys.modules["pkg_resources"].resource_filename("atent_ext.compat", "py.typed")
    assert Path(path).is_file()
    assert "pkg_resources" not in sys.modules


def test_an_installed_pkg_resources_is_left_alone(monkeypatch):
    own = ModuleType("pkg_resources")
    monkeypatch.setitem(sys.modules, "pkg_resources", own)
    with compat._pkg_resources():
        assert sys.modules["pkg_resources"] is own
    assert sys.modules["pkg_resources"] is own


def test_the_original_package_is_preferred(monkeypatch):
    choose(monkeypatch, "autoattack")
    assert issubclass(compat.autoattack_class(), sys.modules["autoattack"].AutoAttack)
    assert compat.autoattack_package() == ("autoattack", "0.1")
    choose(monkeypatch, "pyautoattack")
    assert compat.autoattack_package() == ("pyautoattack", "0.2.0")


def test_a_broken_original_package_is_reported_and_not_replaced(monkeypatch, tmp_path):
    (tmp_path / "autoattack").mkdir()
    (tmp_path / "autoattack" / "__init__.py").write_text("import a_module_that_is_missing")
    monkeypatch.delitem(sys.modules, "autoattack", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        compat.autoattack_class()


def test_signatures_are_those_of_the_original(adapter):
    def names(function):
        return list(inspect.signature(function).parameters)

    assert names(adapter) == [
        *("model", "norm", "eps", "seed", "verbose", "attacks_to_run", "version", "is_tf_model", "device", "log_path")
    ]
    evaluate, individual = adapter.run_standard_evaluation, adapter.run_standard_evaluation_individual
    assert names(evaluate) == ["self", "x_orig", "y_orig", "bs", "return_labels", "state_path"]
    assert names(individual) == ["self", "x_orig", "y_orig", "bs", "return_labels"]
    assert names(adapter.clean_accuracy) == ["self", "x_orig", "y_orig", "bs"]
    defaults = {name: p.default for name, p in inspect.signature(adapter).parameters.items()}
    assert (defaults["norm"], defaults["eps"], defaults["version"]) == ("Linf", 0.3, "standard")
    assert issubclass(adapter, pyautoattack.AutoAttack)


def test_the_adapter_finds_what_pyautoattack_finds(adapter):
    model, x, y = problem()
    trace = sys.gettrace()
    expected, classes = small(pyautoattack.AutoAttack, model).run_standard_evaluation(x, y, batch_size=5)
    sys.settrace(trace)  # pyautoattack switches coverage measurement off
    attack = small(adapter, model, verbose=False)
    adversaries, labels = attack.run_standard_evaluation(x, y, bs=5, return_labels=True)
    assert torch.equal(adversaries, expected)
    assert torch.equal(labels, classes)
    assert 0 < (labels != y).sum() < len(y)
    assert torch.equal(attack.run_standard_evaluation(x, y, 5), expected)


def test_each_attack_on_its_own(adapter):
    model, x, y = problem()
    attack = small(adapter, model, verbose=False)
    results = attack.run_standard_evaluation_individual(x, y, bs=5, return_labels=True)
    assert attack.attacks_to_run == list(results) == ["apgd-ce", "fab"]
    attack.attacks_to_run = ["fab"]
    alone, labels = attack.run_standard_evaluation(x, y, bs=5, return_labels=True)
    assert torch.equal(results["fab"][0], alone)
    assert torch.equal(results["fab"][1], labels)
    assert torch.equal(attack.run_standard_evaluation_individual(x, y, bs=5)["fab"], alone)


def test_clean_accuracy_counts_the_last_short_batch(adapter):
    model, x, y = problem()
    y = torch.cat([y[:9], (y[9:] + 1) % 5])
    assert adapter(model, verbose=False).clean_accuracy(x, y, bs=5) == pytest.approx(9 / 12)


def test_versions(adapter):
    attack = adapter(problem()[0], verbose=False)
    assert attack.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert attack.apgd.n_restarts == 1
    attack.set_version("plus")
    assert len(attack.attacks_to_run) == 6
    assert attack.apgd.n_restarts == 5
    custom = adapter(problem()[0], attacks_to_run=["square"], version="custom")
    assert custom.attacks_to_run == ["square"]
    assert adapter(problem()[0], version="custom").attacks_to_run == []


def test_bad_arguments(adapter, tmp_path):
    model, x, y = problem()
    with pytest.raises(BadInput, match="did you mean 'standard'") as error:
        adapter(model, version="standart")
    assert (error.value.code, error.value.field) == ("unknown-name", "version")
    with pytest.raises(BadInput, match="did you mean 'plus'") as error:
        adapter(model).set_version("pluss")
    assert (error.value.code, error.value.field) == ("unknown-name", "version")
    attack = small(adapter, model, verbose=False)
    state = tmp_path / "state.json"
    attack.run_standard_evaluation(x, y, state_path=str(state))
    assert state.stat().st_size > 0
    with pytest.raises(BadInput, match=r"state\.json exists") as error:
        attack.run_standard_evaluation(x, y, state_path=state)
    assert (error.value.code, error.value.field) == ("exists", "state_path")


def test_pyautoattack_runs_no_tensorflow_model(monkeypatch):
    choose(monkeypatch, "pyautoattack")
    with pytest.raises(BadInput, match="install the original AutoAttack") as error:
        compat.autoattack_class()(problem()[0], is_tf_model=True)
    assert (error.value.code, error.value.field) == ("unsupported", "is_tf_model")


def test_the_default_device_is_that_of_the_model_or_of_the_images(adapter):
    model, x, y = problem()
    assert adapter(model).device == torch.device("cpu")
    assert adapter(model, device="meta").device == "meta"
    assert adapter(OnlyBuffers("meta")).device == torch.device("meta")
    function = small(adapter, lambda images: model(images), verbose=False)
    assert function.device is None
    assert torch.equal(function.run_standard_evaluation(x, y), small(adapter, model).run_standard_evaluation(x, y))


def test_it_leaves_no_trace(adapter):
    model, x, y = problem()
    model[1].bias.requires_grad_(False)
    model.train()
    before = torch.random.get_rng_state(), random.getstate(), LOGGER.level, list(LOGGER.handlers)

    def trace(frame, event, argument):
        return None

    earlier = sys.gettrace()
    sys.settrace(trace)
    try:
        small(adapter, model).run_standard_evaluation(x, y)
        kept = sys.gettrace()
    finally:
        sys.settrace(earlier)
    assert kept is trace
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (random.getstate(), LOGGER.level, LOGGER.handlers) == before[1:]
    assert model[1].weight.requires_grad
    assert model[1].weight.grad is None
    assert not model[1].bias.requires_grad
    assert model.training


def test_messages_go_to_stdout_and_to_the_file(adapter, monkeypatch, capsys, tmp_path):
    # As in a program that has not set up logging; pytest has.
    monkeypatch.setattr(LOGGER, "propagate", False)
    model, x, y = problem()
    log = tmp_path / "log.txt"
    attack = small(adapter, model, log_path=log)
    attack.run_standard_evaluation(x, y)
    printed = capsys.readouterr().out
    assert "initial accuracy: 100.00%" in printed
    assert "robust accuracy after FAB" in printed
    assert log.read_text(encoding="utf-8") == printed
    attack.clean_accuracy(x, y)
    assert capsys.readouterr().out == "clean accuracy: 100.00%\n"
    attack.verbose = False
    attack.run_standard_evaluation(x, y)
    assert capsys.readouterr().out == ""
    assert LOGGER.handlers == []


def test_messages_go_to_the_handlers_of_a_program_that_has_some(adapter, caplog, capsys):
    model, x, y = problem()
    small(adapter, model).run_standard_evaluation(x, y)
    assert "robust accuracy after APGD-CE" in caplog.text
    assert capsys.readouterr().out == ""


def test_a_dynamic_model_does_not_stain_the_next_one(adapter, caplog):
    class Dynamic(nn.Module):
        def grad(self, x):
            return x.flatten(1)

        def forward(self, x):
            return self.grad(x) * torch.ones((), requires_grad=True)

    model, x, y = problem()
    for suspect, warned in ((Dynamic(), True), (model, False)):
        caplog.clear()
        small(adapter, suspect, verbose=False).run_standard_evaluation(x, y)
        assert ("dynamic defense" in caplog.text) == warned
