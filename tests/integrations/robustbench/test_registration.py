"""RobustBench's own load_model and benchmark on our models, and its models in our evaluation.

`robustbench` is never changed here. AutoAttack, below it, is: fewer iterations, so that a test takes seconds, and a
clock that stands still, because `benchmark` passes no seed and AutoAttack then seeds each attack with the time.
"""

import hashlib
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from original_autoattack import choose
from problems import attack_spec
from torch import nn

from atent_ext.attacks.accuracy import clean_flags
from atent_ext.attacks.spec import Setting
from atent_ext.core import compat
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation import places
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.run import run_protocol
from atent_ext.integrations import robustbench as ours
from atent_ext.integrations.robustbench.export import export
from atent_ext.models import networks
from atent_ext.training import recipes
from atent_ext.training.loop import fit
from atent_ext.training.run_folder import RunFolder

if importlib.util.find_spec("robustbench") is None:
    pytest.skip("robustbench is not installed", allow_module_level=True)
compat.robustbench()

import robustbench.eval  # noqa: E402
from robustbench.data import _clean_dataset_loaders, load_cifar10, load_clean_dataset  # noqa: E402
from robustbench.eval import benchmark  # noqa: E402
from robustbench.model_zoo import model_dicts  # noqa: E402
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel  # noqa: E402
from robustbench.utils import load_model  # noqa: E402

from atent_ext import subjects  # noqa: E402
from atent_ext.models import weights  # noqa: E402

SEED = 7
N = 16
AUTOATTACK = Protocol(
    name="clean and AutoAttack", description="", attacks=(attack_spec("clean"), attack_spec("autoattack"))
)
ZOO = "Addepalli2022Efficient_RN18"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def download(gdrive_id, file):
        raise AssertionError(f"download of {file}")

    monkeypatch.setattr("robustbench.utils.gdown.download", download)


@pytest.fixture(autouse=True)
def forget_pictures():
    yield  # each test has a file pictures.npz of its own, and to RobustBench these are one data set
    _clean_dataset_loaders.pop(BenchmarkDataset._value2member_map_.get("npz-pictures"), None)


@pytest.fixture
def short_autoattack(monkeypatch):
    import pyautoattack.autoattack as module

    original = module.AutoAttack._set_version

    def shortened(self, version="standard"):
        original(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = 10
        self.fab.n_iter = 3
        self.square.n_queries = 50

    monkeypatch.setattr(module.AutoAttack, "_set_version", shortened)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: float(SEED)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robustbench") / "run"
    tiny = ["epochs=2", "objective.steps=2", "validation.count=60", "validation.steps=2", "name=tiny-digits"]
    fit(recipes.load("digits-linf-atent", tiny), datasets.load("digits"), folder)
    return folder


def tiny_convolution():
    layers = [nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10)]
    return nn.Sequential(*layers)


@pytest.fixture
def pictures(tmp_path):
    """A data set of CIFAR-10's shape: ten noisy patterns."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(60, 196, (10, 3, 32, 32))
    labels = np.arange(80) % 10
    images = (patterns[labels] + draw.normal(0, 25, (80, 3, 32, 32))).clip(0, 255).astype(np.uint8)
    path = tmp_path / "pictures.npz"
    np.savez(path, x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    return f"npz:{path}"


@pytest.fixture
def trained(pictures):
    split = datasets.load(pictures).train
    torch.manual_seed(0)
    model = tiny_convolution()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(split.images), split.labels).backward()
        optimizer.step()
    return model.eval()


def save(state, model_dir, dataset, name, threat="Linf"):
    path = Path(model_dir) / dataset / threat / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def refusal(call, *arguments, **options):
    with pytest.raises(BadInput) as error:
        call(*arguments, **options)
    return str(error.value)


def same_weights(model, other):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def benchmarked(monkeypatch, model, dataset, threat, **options):
    """What `benchmark` returns, and which examples were right before and after its attack."""
    seen, count = [], robustbench.eval.clean_accuracy

    def watched(network, x, y, **rest):
        seen.append(network(x).argmax(1) == y)
        return count(network, x, y, **rest)

    monkeypatch.setattr(robustbench.eval, "clean_accuracy", watched)
    with torch.no_grad():
        return benchmark(model, N, dataset, threat, batch_size=N, **options), *seen


def compared(monkeypatch, model, dataset, threat, eps):
    """Benchmark and our evaluation, to the example; returns both accuracies."""
    (clean, robust), clean_right, robust_right = benchmarked(monkeypatch, model, dataset, threat, eps=eps)
    split = datasets.load(dataset).test.take(N)
    setting = Setting(Threat(norm=threat, eps=eps), seed=SEED, batch_size=N)
    ours_clean, ours_robust, _ = run_protocol(model, split, AUTOATTACK, setting)
    assert torch.equal(clean_right, clean_flags(model, split))
    assert torch.equal(clean_right, ours_clean.flags)
    assert torch.equal(robust_right, ours_robust.flags)
    assert (clean, robust) == pytest.approx((ours_clean.accuracy, ours_robust.accuracy), abs=1e-7)
    return clean, robust


def test_a_run_is_loaded_and_benchmarked_as_we_evaluate_it(run, monkeypatch, short_autoattack):
    ours.register_run(run)
    ours.register_run(run)
    model = load_model("tiny-digits", dataset="digits", threat_model="Linf")
    assert not model.training
    assert same_weights(model, RunFolder(run).load_model(datasets.load("digits")))
    clean, robust = compared(monkeypatch, model, "digits", "Linf", 0.1)
    assert 0 < robust < clean  # else the flags would say little


@pytest.mark.parametrize(("threat", "eps"), [("Linf", 0.03), ("L2", 1.0)])
def test_a_network_of_ones_own_on_a_data_set_of_ones_own(
    threat, eps, pictures, trained, tmp_path, monkeypatch, short_autoattack
):
    save(trained.state_dict(), tmp_path / "zoo", "npz-pictures", "mine", threat)
    ours.register("mine", dataset=pictures, threat_model=threat, model=tiny_convolution)
    model = load_model("mine", tmp_path / "zoo", pictures, threat)
    assert not model.training
    assert same_weights(model, trained)
    clean, robust = compared(monkeypatch, model, pictures, threat, eps)
    assert 0 < robust < clean
    assert same_weights(model, trained)


@pytest.mark.parametrize("package", ["pyautoattack", "autoattack"])
def test_a_benchmark_with_a_state_file_gives_the_accuracy_without_it(
    package, run, short_autoattack, tmp_path, monkeypatch
):
    choose(monkeypatch, package)
    for name in ("AutoAttack", "EvaluationState"):
        monkeypatch.setattr(robustbench.eval, name, None)  # so that it is as before afterwards
    ours.register_run(run)
    assert issubclass(robustbench.eval.AutoAttack, importlib.import_module(package).AutoAttack)
    model = load_model("tiny-digits", dataset="digits", threat_model="Linf")
    expected = benchmark(model, 8, "digits", "Linf", eps=0.1)
    state = tmp_path / "state.json"
    assert benchmark(model, 8, "digits", "Linf", eps=0.1, aa_state_path=state) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(robustbench.eval, "clean_accuracy", None)  # the second call gets nowhere near it
    with pytest.raises(BadInput, match=r"state\.json exists") as error:
        benchmark(model, 8, "digits", "Linf", eps=0.1, aa_state_path=state)
    assert (error.value.code, error.value.field) == ("exists", "state_path")


def test_its_cards_take_the_name_of_the_data_set(run, short_autoattack, tmp_path):
    ours.register_run(run, "another-name")
    model = load_model("another-name", dataset="digits", threat_model="Linf")
    benchmark(model, 4, "digits", "Linf", eps=0.3, to_disk=True, model_name="another-name")
    assert (tmp_path / "model_info" / "digits" / "Linf" / "another-name.json").is_file()


def test_a_network_of_the_registry_takes_classes_and_channels_of_the_data(tmp_path):
    torch.manual_seed(0)
    network = networks.build("digits-cnn", classes=10, channels=1)
    save(network.state_dict(), tmp_path, "digits", "by-name")
    ours.register("by-name", dataset="digits", threat_model="Linf", model="digits-cnn")
    assert same_weights(load_model("by-name", tmp_path, "digits", "Linf"), network)


def test_the_loader_gives_our_test_images_in_order_wherever_the_current_folder_is(pictures, tmp_path, monkeypatch):
    save(networks.build("resnet-20", classes=10, channels=3).state_dict(), tmp_path, "npz-pictures", "loaded")
    ours.register("loaded", dataset="npz:pictures.npz", threat_model="Linf", model="resnet-20")
    monkeypatch.chdir(tmp_path.parent)
    assert not load_model("loaded", tmp_path, "npz:pictures.npz", "Linf").training
    member, test = BenchmarkDataset("npz:pictures.npz"), datasets.load(pictures).test
    for count, given in ((5, 5), (None, 20), (10000, 20)):
        x, y = load_clean_dataset(member, count, "./data", None)
        assert torch.equal(x, test.images[:given])
        assert torch.equal(y, test.labels[:given])


def test_the_images_lie_where_register_benchmark_or_the_environment_say(monkeypatch):
    roots = []
    monkeypatch.setattr(datasets, "load", lambda name, root=None: roots.append(root) or data_set(root))
    ours.register("mine", dataset="mnist", threat_model="Linf", model=tiny_convolution)
    load_clean_dataset(BenchmarkDataset("mnist"), 2, "./data", None)
    load_clean_dataset(BenchmarkDataset("mnist"), 2, "there", None)
    ours.register("mine", dataset="mnist", threat_model="Linf", model=tiny_convolution, data_root="here")
    ours.register("second", dataset="mnist", threat_model="Linf", model=tiny_convolution)
    load_clean_dataset(BenchmarkDataset("mnist"), 2, "there", None)
    assert roots == [None, "there", "here"]


def data_set(name, channels=3, side=32):
    part = datasets.Split(torch.rand(20, channels, side, side), torch.arange(20) % 10)
    return datasets.DataSet(name, tuple("0123456789"), part, part)


def test_its_own_data_sets_keep_their_loader_unless_a_root_is_given(monkeypatch):
    member, fake = BenchmarkDataset.cifar_10, data_set("cifar10")
    monkeypatch.setitem(_clean_dataset_loaders, member, load_cifar10)
    ours.register("mine", dataset="cifar10", threat_model="Linf", model="resnet-20")
    assert BenchmarkDataset("cifar10") is member
    assert _clean_dataset_loaders[member] is load_cifar10
    ours.register("mine", dataset="cifar10", threat_model="Linf", model="resnet-20", data_root="here")
    monkeypatch.setattr(datasets, "load", lambda name, root: {("cifar10", "here"): fake}[name, root])
    assert torch.equal(load_clean_dataset(member, 3, "./data", None)[0], fake.test.images[:3])


def test_a_missing_checkpoint_is_named_and_nothing_is_downloaded(tmp_path):
    ours.register("nowhere", dataset="digits", threat_model="L2", model="digits-cnn")
    assert "digits/L2/nowhere.pt" in refusal(load_model, "nowhere", tmp_path, "digits", "L2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ZOO}, [ZOO, "own zoo", "cifar10"]),
        ({"name": "Engstrom2019Robustness", "dataset": "digits"}, ["own zoo"]),
        ({"name": "a/b"}, ["a/b"]),
        ({"name": "../up"}, ["../up"]),
        ({"name": ""}, ["name is ''"]),
        ({"dataset": "cifar-10"}, ["cifar-10", "'cifar10'"]),
        ({"dataset": "imagenett"}, ["imagenett", "'imagenet'"]),
        ({"threat_model": "corruptions"}, ["corruptions", "Linf"]),
        ({"model": "resnet20"}, ["resnet20", "'resnet-20'"]),
    ],
)
def test_what_cannot_be_registered_is_refused(change, words):
    before = [len(zoo) for threats in model_dicts.values() for zoo in threats.values()]
    given = {"name": "fine", "dataset": "cifar10", "threat_model": "Linf", "model": "resnet-20"} | change
    message = refusal(ours.register, given.pop("name"), **given)
    for word in words:
        assert word in message
    assert [len(zoo) for threats in model_dicts.values() for zoo in threats.values()] == before


def test_two_files_of_one_name_are_told_apart(pictures, tmp_path):
    ours.register("mine", dataset=pictures, threat_model="Linf", model=tiny_convolution)
    (tmp_path / "other").mkdir()
    other = Path(pictures.removeprefix("npz:")).rename(tmp_path / "other" / "pictures.npz")
    assert "npz-pictures" in refusal(
        ours.register, "mine", dataset=f"npz:{other}", threat_model="Linf", model=tiny_convolution
    )


class Awkward(nn.Module):
    """RobustBench's loader cuts letters off each of these keys."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        self.submodule = nn.ModuleDict({"my_model": nn.Linear(10, 10)})

    def forward(self, x):
        return self.submodule["my_model"](self.model(x))


def test_keys_that_it_would_cut_survive_an_export(pictures, monkeypatch, tmp_path):
    run = untrained(tmp_path / "run", Awkward(), f"dataset={pictures}", "name=awkward")
    monkeypatch.setattr(RunFolder, "load_model", lambda self, images: filled(Awkward(), self.weights))
    weights, _ = export(run, tmp_path / "zoo")
    ours.register("awkward", dataset=pictures, threat_model="Linf", model=Awkward)
    model = load_model("awkward", tmp_path / "zoo", pictures, "Linf")
    assert same_weights(model, filled(Awkward(), run / "weights.safetensors"))
    torch.save(model.state_dict(), weights)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_model("awkward", tmp_path / "zoo", pictures, "Linf")


def filled(model, file):
    weights.load_weights(model, file)
    return model


def untrained(path, model, *changes, base="cifar10-linf-sgd"):
    """A run folder as training leaves it, with fresh weights."""
    folder = RunFolder(path)
    with folder.claimed(recipes.load(base, changes), resume=False, overwrite=False):
        weights.save_weights(model, folder.weights)
    return path


def test_an_export_loads_where_our_adapter_was_never_imported(tmp_path, monkeypatch):
    images = data_set("cifar10")
    monkeypatch.setattr("atent_ext.data.datasets.load", lambda *_: images)
    torch.manual_seed(0)
    model = networks.build("resnet-18", classes=10, channels=3).eval()
    run = untrained(tmp_path / "run", model, "model.name=resnet-18", "name=exported")
    weights, entry = export(run, tmp_path / "zoo")
    assert weights == tmp_path / "zoo" / "cifar10" / "Linf" / "exported.pt"
    assert set(torch.load(weights, weights_only=True)) == set(model.state_dict())
    x = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    (tmp_path / "script.py").write_text(
        "import sys, torch\n"
        "from atent_ext import compat\n"
        "compat.robustbench()\n"
        f"exec(open({str(entry)!r}).read())\n"
        "from robustbench.utils import load_model\n"
        f"model = load_model('exported', {str(tmp_path / 'zoo')!r}, 'cifar10', 'Linf')\n"
        "x = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)\n"
        "torch.save(model(x).detach(), 'logits.pt')\n"
        "assert not {'atent_ext.models', 'atent_ext.adapters'} & set(sys.modules)\n"
        "import atent_ext.integrations.robustbench.registration\n"
        "from robustbench.data import _clean_dataset_loaders, load_cifar10\n"
        "assert [member.value for member in BenchmarkDataset] == ['cifar10', 'cifar100', 'imagenet']\n"
        "assert _clean_dataset_loaders[BenchmarkDataset.cifar_10] is load_cifar10\n"
    )
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load("logits.pt", weights_only=True), model(x).detach())


def environment():
    root = str(Path(ours.__file__).parents[3])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def test_the_entry_of_a_network_of_ours_registers_it(run, tmp_path):
    torch.manual_seed(0)
    fresh = networks.build("small-cnn", classes=10, channels=1, dropout=0.25)
    folder = tmp_path / "small"
    images = data_set("mnist", channels=1, side=28)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atent_ext.data.datasets.load", lambda *_: images)
        changes = ["name=small", "model.name=small-cnn", "model.arguments.dropout=0.25"]
        untrained(folder, fresh, *changes, base="mnist-linf-sgd")
        _, small = export(folder, tmp_path / "zoo")
    _, digits = export(run, tmp_path / "zoo", "digits-again")
    for entry in (small, digits):
        exec(entry.read_text(), {})
    assert same_weights(load_model("small", tmp_path / "zoo", "mnist", "Linf"), fresh)
    loaded = load_model("digits-again", tmp_path / "zoo", "digits", "Linf")
    assert same_weights(loaded, RunFolder(run).load_model(datasets.load("digits")))
    # The text is Python that people run: what a recipe says must stay inside its quotes.
    assert "dropout=0.25" in small.read_text()


def test_words_of_a_recipe_do_not_become_code(run, tmp_path):
    folder = tmp_path / "evil"
    chosen = recipes.load("digits-linf-sgd", ["epochs=1"]).model_copy(update={"name": "x\nraise SystemExit\n"})
    with RunFolder(folder).claimed(chosen, resume=False, overwrite=False):
        (folder / "weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes())
    assert "name is" in refusal(export, folder, tmp_path / "zoo")
    _, entry = export(folder, tmp_path / "zoo", "good")
    exec(entry.read_text(), {})


def test_an_export_replaces_nothing_in_silence(run, tmp_path):
    weights, entry = export(run, tmp_path)
    before = weights.read_bytes()
    for path, other in ((weights, entry), (entry, weights)):
        path.write_bytes(b"precious")
        other.unlink()
        assert str(path) in refusal(export, run, tmp_path)
        assert path.read_bytes() == b"precious"
        assert not other.exists()
        assert export(run, tmp_path, overwrite=True) == (weights, entry)
    assert weights.read_bytes() == before
    assert sorted(weights.parent.iterdir()) == [weights, entry]
    assert "own zoo" in refusal(export, run, tmp_path, ZOO)
    assert "no run" in refusal(export, tmp_path, tmp_path)


def zoo(name=ZOO, dataset="cifar10", threat_model="Linf", model_dir="models"):
    return ours.load_zoo(name, dataset=dataset, threat_model=threat_model, model_dir=model_dir)


def test_a_model_of_the_zoo_is_loaded_and_scored(tmp_path, monkeypatch, capsys):
    from robustbench.model_zoo.architectures.resnet import ResNet18

    torch.manual_seed(0)
    network = ResNet18()
    # As DataParallel saves it, beside other things.
    state = {f"module.{key}": tensor for key, tensor in network.state_dict().items()}
    file = save({"state_dict": state, "epoch": 3}, "z", "cifar10", ZOO)
    before = torch.random.get_rng_state()
    model = zoo(model_dir="z")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same_weights(model, network)
    assert not any(module.training for module in model.modules())
    assert capsys.readouterr().out == ""
    images = data_set("cifar10")
    monkeypatch.setattr("atent_ext.data.datasets.load", lambda *_: images)
    subject = subjects.load(Path(f"robustbench:{ZOO}"), dataset="cifar10", model_dir=Path("z"))
    assert subject.threat == Threat(norm="Linf", eps=8 / 255)
    assert same_weights(subject.model, network)
    assert subject.about.name == ZOO
    assert subject.about.model == "robustbench 1.1.1"
    assert subject.about.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    protocol = Protocol(name="clean", description="", attacks=(attack_spec("clean"),))
    path = places.default_path(Path(f"robustbench:{ZOO}"), subject, protocol, 2, 0)
    assert path.parts[0] == "runs"
    assert path.parts[1].startswith(ZOO)
    assert ":" not in str(path)


def test_an_ensemble_of_the_zoo_is_loaded_from_all_its_files(monkeypatch):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.models = nn.ModuleList([tiny_convolution(), tiny_convolution()])

    entry = {"model": Pair, "gdrive_id": ["first", "second"]}
    monkeypatch.setitem(model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf], "Pair", entry)
    parts = [tiny_convolution(), tiny_convolution()]
    for number, part in enumerate(parts):
        missing = f"Pair.pt_m{number}.pt"
        assert missing in refusal(zoo, "Pair")
        save(part.state_dict(), "models", "cifar10", missing.removesuffix(".pt"))
    assert same_weights(zoo("Pair"), Wrapped(parts))


class Wrapped(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.models = nn.ModuleList(parts)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_checkpoint_with_code_is_refused_before_robustbench_sees_it(hidden, monkeypatch):
    content = {"state_dict": {}, "args": Malicious()} if hidden else Malicious()
    file = save(content, "models", "cifar10", ZOO)
    monkeypatch.setattr("robustbench.utils.load_model", lambda *_, **__: pytest.fail("robustbench was asked"))
    assert str(file) in refusal(zoo)
    assert not Path("ran").exists()


def test_a_zoo_model_that_is_not_there(tmp_path):
    assert str(Path("models") / "cifar10" / "Linf" / f"{ZOO}.pt") in refusal(zoo)
    assert str(tmp_path / "cifar10" / "L2" / "Rice2020Overfitting.pt") in refusal(
        zoo, "Rice2020Overfitting", threat_model="L2", model_dir=tmp_path
    )
    assert list(tmp_path.iterdir()) == []


def test_zoo_names_that_do_not_exist():
    assert f"did you mean '{ZOO}'" in refusal(zoo, "Addepali2022Efficient_RN18")
    assert "cifar10" in refusal(zoo, dataset="cifar-10")
    assert "Linf" in refusal(zoo, threat_model="L1")
    assert "no L2 models for cifar100" in refusal(zoo, dataset="cifar100", threat_model="L2")
    assert "downloads" in refusal(zoo, "Debenedetti2022Light_XCiT-S12")
    assert "downloads" in refusal(zoo, "Standard_R50", dataset="imagenet")


@pytest.mark.parametrize("content", [{"linear.weight": torch.zeros(2)}, {"state_dict": 3}, {}])
def test_a_checkpoint_of_another_network_is_refused(content, monkeypatch):
    entry = {"model": tiny_convolution, "gdrive_id": "somewhere"}
    monkeypatch.setitem(model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf], "Small", entry)
    save(content, "models", "cifar10", "Small")
    message = refusal(zoo, "Small")
    assert "'Small'" in message
    assert "\n" not in message


def test_scoring_says_what_a_zoo_model_needs(run):
    subject = Path(f"robustbench:{ZOO}")
    assert "--dataset" in refusal(subjects.load, subject)
    assert "--model" in refusal(subjects.load, subject, dataset="cifar10", model="resnet-18")
    assert "no L2 models for cifar100" in refusal(subjects.load, subject, dataset="cifar100", norm="L2")
    assert "eps is -1" in refusal(subjects.load, subject, dataset="cifar10", eps=-1)
    assert "--model-dir" in refusal(subjects.load, run, model_dir=Path("models"))


def test_a_network_that_is_only_named_cannot_be_a_trained_one():
    with pytest.raises(BadInput, match="trained is True, but model 'digits-cnn' is only a network's name"):
        ours.register("m", dataset="digits", threat_model="Linf", model="digits-cnn", trained=True)
