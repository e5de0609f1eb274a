"""The bundle for RobustBench: loaded by it where atent_ext cannot be imported, and read by its own tables."""

import hashlib
import importlib.util
import json
import runpy

import numpy as np
import pytest
import torch
from reports import report, result
from torch import nn

from atent_ext.attacks.spec import Note
from atent_ext.core import compat, registry
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.integrations.robustbench import card as model_card
from atent_ext.integrations.robustbench.bundle import bundle, check
from atent_ext.integrations.robustbench.source import robustbench_source, source
from atent_ext.models import networks
from atent_ext.submissions.cards import Card

if importlib.util.find_spec("robustbench") is None:
    pytest.skip("robustbench is not installed", allow_module_level=True)
compat.robustbench()

from robustbench import utils  # noqa: E402
from robustbench.model_zoo import model_dicts  # noqa: E402
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel  # noqa: E402

from atent_ext.models import weights  # noqa: E402

NAME = "Tester2026Bundle"
LINF = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]
CHANGED = Note(kind="changed", text="not standard AutoAttack: the model has 3 classes")
SCALE = {"mean": [0.25, 0.5, 0.375], "std": [0.5, 0.25, 0.125]}


@pytest.fixture(autouse=True)
def forget():
    yield
    LINF.pop(NAME, None)


def row(attack, right, n, **settings):
    return result(attack, right / n, n, settings=settings)


def autoattack(right, n, version="standard", **more):
    settings = {"version": version, "package": "pyautoattack 0.2.0"}
    return result("AutoAttack", right / n, n, settings=settings, **more)


def card(weights, results=None, signs=(), **changes):
    submission = {
        "name": NAME,
        "authors": "A. Tester, B. Tester",
        "architecture": {"name": "digits-cnn"},
        "dataset": "digits",
        "threat": {"norm": "Linf", "eps": 0.1},
        "license": "MIT",
    } | changes
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    results = results or [row("clean", 9, 10), autoattack(4, 10)]
    fields = {"submission": submission, "weights": {"file": weights.name, "sha256": digest}, "signs": signs}
    fields |= {"checks": (), "verdicts": (), "report": report(*results, data=submission["dataset"])}
    return Card.model_validate(fields | {"command": "", "commit": "", "date": "2026-11-26", "seconds": 1.0})


def saved(network, path):
    weights.save_weights(network, path)
    return path


@pytest.fixture
def small(tmp_path):
    """Weights of a fresh network for digits."""
    return saved(networks.build("digits-cnn", classes=10, channels=1), tmp_path / "model.safetensors")


def filled(network):
    """The network with no weight at zero and running statistics that are no default."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) * 0.2 + 0.01)
    return network.eval()


def refusal(call, *arguments, **options):
    with pytest.raises(BadInput) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def counted(network, images, labels):
    with torch.no_grad():
        return int((network.eval()(images).argmax(1) == labels).sum())


# ---- loaded by RobustBench alone


def trained_digits(scaled, labels):
    torch.manual_seed(0)
    network = networks.build("digits-cnn", classes=10, channels=1)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(scaled), labels).backward()
        optimizer.step()
    return network


@pytest.mark.integration
def test_a_network_of_ours_is_loaded_without_us_on_data_that_robustbench_does_not_know(tmp_path):
    digits, scale = datasets.load("digits"), {"mean": [0.5], "std": [0.1]}
    network = trained_digits((digits.train.images - 0.5) / 0.1, digits.train.labels)
    test, count = digits.test, len(digits.test)
    right = counted(network, (test.images - 0.5) / 0.1, test.labels)
    assert 0.5 * count < right < count
    assert right != counted(network, test.images, test.labels)  # else normalisation would not show
    weights = saved(network, tmp_path / "model.safetensors")
    measured = card(weights, [row("clean", right, count), autoattack(10, count)], normalisation=scale)
    files = bundle(measured, weights, tmp_path / "out")
    before = {path: path.read_bytes() for path in files}
    assert {path.relative_to(tmp_path / "out").as_posix() for path in files} == {
        f"models/digits/Linf/{NAME}.pt",
        f"model_info/digits/Linf/{NAME}.json",
        "register.py",
        "entry.py.txt",
        "digits_cnn.py",
        "issue.md",
        "README.md",
    }
    assert check(tmp_path / "out", test.images, test.labels) == right / count
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


@pytest.mark.integration
def test_robustbenchs_own_network_is_loaded_without_us_on_pictures_of_cifar10s_shape(tmp_path):
    pictures = noisy_patterns(tmp_path / "pictures.npz")
    network = with_fitted_last_layer(pictures.train)
    right = counted(network, pictures.test.images, pictures.test.labels)
    assert right > 10
    weights = saved(network, tmp_path / "model.safetensors")
    measured = card(
        weights,
        [row("clean", right, 20), autoattack(0, 20)],
        dataset="cifar10",
        architecture={"name": "resnet-18"},
        threat={"norm": "L2", "eps": 0.5},
    )
    out = tmp_path / "out"
    files = bundle(measured, weights, out)
    assert out / "models" / "cifar10" / "L2" / f"{NAME}.pt" in files
    assert [path.name for path in files if path.suffix == ".py"] == ["register.py"]
    assert check(out, pictures.test.images, pictures.test.labels) == right / 20


def noisy_patterns(path):
    """A data set of CIFAR-10's shape: ten patterns, blurred by noise."""
    draw = np.random.default_rng(0)
    labels = np.arange(80) % 10
    patterns = draw.integers(60, 196, (10, 3, 32, 32))
    images = (patterns[labels] + draw.normal(0, 25, (80, 3, 32, 32))).clip(0, 255).astype(np.uint8)
    np.savez(path, x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    return datasets.load(f"npz:{path}")


def with_fitted_last_layer(split):
    """A fresh ResNet-18 whose last layer is the least-squares classifier of its features."""
    torch.manual_seed(0)
    network = networks.build("resnet-18", classes=10, channels=3).eval()
    last, network.linear = network.linear, nn.Identity()
    with torch.no_grad():
        features = network(split.images)
        bordered = torch.cat([features, torch.ones(len(split), 1)], 1)
        found = torch.linalg.pinv(bordered) @ nn.functional.one_hot(split.labels, 10).float()
        last.weight.copy_(found[:-1].T)
        last.bias.copy_(found[-1])
    network.linear = last
    return network


@pytest.mark.integration
def test_a_bundle_that_needs_us_does_not_pass_the_check(small, tmp_path):
    bundle(card(small), small, tmp_path / "out")
    register = tmp_path / "out" / "register.py"
    register.write_text("from atent_ext import models\n" + register.read_text())
    assert "no atent_ext" in refusal(check, tmp_path / "out", torch.zeros(1, 1, 8, 8), torch.zeros(1).long())


def test_a_folder_without_a_checkpoint_is_not_run(small, tmp_path):
    out = tmp_path / "out"
    bundle(card(small), small, out)
    (out / "models" / "digits" / "Linf" / f"{NAME}.pt").unlink()
    (out / "register.py").write_text("raise SystemExit(3)")
    assert "is no bundle" in refusal(check, out, torch.zeros(1, 1, 8, 8), torch.zeros(1).long())
    assert "is no bundle" in refusal(check, tmp_path, torch.zeros(1, 1, 8, 8), torch.zeros(1).long())


# ---- on CIFAR-10, whose images are not needed


def on_cifar10(folder, architecture, **changes):
    """The bundle of a network with weights of no meaning: (network, folder)."""
    network = filled(networks.build(architecture, classes=10, channels=3))
    weights = saved(network, folder / "model.safetensors")
    results = [row("clean", 8461, 10000), autoattack(5123, 10000)]
    given = {"dataset": "cifar10", "threat": {"norm": "Linf", "eps": 8 / 255}, "architecture": {"name": architecture}}
    bundle(card(weights, changes.pop("results", results), **given | changes), weights, folder / "out")
    return network, folder / "out"


def test_the_register_adds_to_a_data_set_that_robustbench_knows(tmp_path):
    before = list(BenchmarkDataset)
    network, out = on_cifar10(tmp_path, "resnet-20")
    space = runpy.run_path(str(out / "register.py"))
    model = utils.load_model(space["NAME"], space["MODELS"], space["DATASET"], space["THREAT"])
    images = torch.rand(2, 3, 32, 32)
    assert not model.training
    assert torch.equal(model(images), network(images))
    assert list(BenchmarkDataset) == before
    with pytest.raises(ImportError, match="fra31/auto-attack"):
        space["AutoAttack"](model, norm="Linf")


def test_the_entry_makes_a_network_that_normalises(tmp_path):
    network, out = on_cifar10(tmp_path, "resnet-18", normalisation=SCALE)
    text = (out / "entry.py.txt").read_text()
    assert "`linf` of robustbench/model_zoo/cifar10.py" in text
    space = {}
    exec(text, space)
    name, entry = space["ENTRY"]
    assert name == NAME
    LINF[name] = entry
    model = utils.load_model(name, out / "models", "cifar10", "Linf")
    mean, std = (torch.tensor(SCALE[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(images), network((images - mean) / std))
    state = torch.load(out / "models" / "cifar10" / "Linf" / f"{NAME}.pt", weights_only=True)
    assert state.keys() == network.state_dict().keys()


def test_robustbenchs_tables_read_the_card(tmp_path, monkeypatch, capsys):
    worst = row("worst case", 5012, 10000, over="clean, AutoAttack, ATENT-40")
    results = [row("clean", 8461, 10000), autoattack(5123, 10000), worst]
    claims = [{"what": "clean", "percent": 85}, {"what": "robust", "percent": 52.5}]
    _, out = on_cifar10(tmp_path, "resnet-20", results=results, claims=claims, venue="ICLR 2026", link="https://a.b")
    monkeypatch.chdir(out)
    monkeypatch.setitem(LINF, NAME, {})
    utils.list_available_models("cifar10", "Linf")
    listed = capsys.readouterr().out
    assert f"[{NAME}](https://a.b)" in listed
    assert "84.61%" in listed
    assert "50.12%" in listed
    latex = utils.get_leaderboard_latex("cifar10", "Linf")
    assert latex == rf"1 &\citet{{{NAME}}} & 84.61 & 50.12 & N & RN20 & ICLR 2026 & {NAME}\\"
    _, bibtex = utils.get_leaderboard_bibtex("cifar10", "Linf")
    assert "{A. Tester and B. Tester}" in bibtex
    assert "{2026}" in bibtex
    utils.update_json(BenchmarkDataset.cifar_10, ThreatModel.Linf, NAME, 0.9, 0.5, None)
    info = json.loads((out / "model_info" / "cifar10" / "Linf" / f"{NAME}.json").read_text())
    assert info == {
        "link": "https://a.b",
        "name": NAME,
        "authors": "A. Tester, B. Tester",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "ICLR 2026",
        "architecture": "ResNet20",
        "eps": "8/255",
        "clean_acc": "90.0",
        "reported": "52.5",
        "autoattack_acc": "50.0",
        "external": "50.12",
        "footnote": "External: an image counts only if it withstands each of clean, AutoAttack, ATENT-40.",
        "unreliable": False,
    }


def test_the_form_and_the_readme_say_what_the_card_says(tmp_path):
    odd = 'A. "Tester"\n# Heading {name}'
    signs = [{"name": "one step", "found": True, "evidence": "FGSM 3 %, PGD 9 %"}]
    signs += [{"name": "black box", "found": False, "evidence": "not shown"}]
    weights = saved(networks.build("digits-cnn", classes=10, channels=1), tmp_path / "model.safetensors")
    bundle(card(weights, signs=signs, authors=odd, license="CC-BY-4.0"), weights, tmp_path / "out")
    form, readme = ((tmp_path / "out" / name).read_text() for name in ("issue.md", "README.md"))
    for line in (
        '- **Paper authors**: A. "Tester" # Heading {name}',
        "- **Architecture**: DigitsCNN",
        "- **Threat Model**: Linf",
        "- **eps**: 0.1",
        "- **Clean accuracy**: 90.0",
        "- **Robust accuracy**: 40.0",
        "- **Additional data**: false",
        "- **Evaluation method**: AutoAttack, standard (pyautoattack 0.2.0), on the first 10 test images of digits",
        "- [ ] It is released under the MIT license. Its license: CC-BY-4.0",
    ):
        assert line in form.splitlines()
    assert "- [ ] Its architecture" in form
    assert "no leaderboard for digits and Linf" in readme
    assert "adds the name to its enumeration" in readme
    assert "gradient masking was found: one step (FGSM 3 %, PGD 9 %)" in readme
    assert "not shown" not in readme
    assert "no link" in readme


def test_a_card_fit_for_the_leaderboard_has_nothing_in_its_way(tmp_path):
    _, out = on_cifar10(tmp_path, "resnet-18", link="https://a.b")
    readme = (out / "README.md").read_text()
    assert readme.endswith("Nothing that the card knows of.\n")
    assert "enumeration" not in readme
    assert "- [x] Its architecture" in (out / "issue.md").read_text()
    (tmp_path / "again").mkdir()
    _, out = on_cifar10(tmp_path / "again", "resnet-18", threat={"norm": "Linf", "eps": 4 / 255})
    assert "eps is 4/255; the leaderboard is for 8/255" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("eps", "text"),
    [(8 / 255, "8/255"), (0.03137255, "8/255"), (0.031, "0.031"), (0.3, "0.3"), (0.2, "0.2"), (0.5, "0.5"), (1.0, "1")],
)
def test_eps_is_written_as_robustbench_writes_it(eps, text):
    assert model_card.radius(eps) == text


# ---- networks as text


@pytest.mark.parametrize(
    ("name", "channels", "side", "arguments"),
    [
        ("digits-cnn", 1, 8, {}),
        ("lenet5-v1", 1, 28, {}),
        ("small-cnn", 1, 28, {"dropout": 0.25}),
        ("resnet-20", 3, 32, {"width": 2}),
        ("lenet5-advertorch", 1, 28, {}),
        ("lenet5-madry", 1, 28, {}),
    ],
)
def test_a_network_in_a_file_of_its_own_is_the_network(name, channels, side, arguments):
    network = filled(networks.build(name, classes=10, channels=channels, **arguments))
    text = source(name, 10, channels, arguments)
    imports = [line for line in text.file.splitlines() if line.startswith(("import ", "from "))]
    assert all(line.split()[1].partition(".")[0] in ("torch", "typing") for line in imports)
    space = {"__name__": text.module}
    exec(text.file, space)
    same = eval(text.call, space)
    same.load_state_dict(network.state_dict(), strict=True)
    images = torch.rand(2, channels, side, side)
    assert torch.equal(same.eval()(images), network(images))
    if "dropout" in arguments:
        assert [layer.p for layer in same.modules() if isinstance(layer, nn.Dropout)] == [0.25]


def test_a_network_in_a_file_of_its_own_refuses_bad_arguments_as_it_does_here():
    space = {}
    exec(source("small-cnn", 10, 1, {}).file, space)
    with pytest.raises(ValueError, match="width is 99") as error:
        space["SmallCNN"](width=99)
    assert (error.value.code, error.value.field) == ("bad-value", "width")


def elsewhere(name, classes):
    """The network as RobustBench's classes, or torchvision's, make it."""
    text = source(name, classes, 3, {})
    assert not text.file
    space = {}
    exec(text.imported, space)
    return eval(text.call, space)


@pytest.mark.parametrize("name", ["resnet-18", "wrn-34-10", "vgg-11"])
def test_a_network_that_robustbench_has_takes_our_weights(name):
    with torch.device("meta"):  # no numbers, which wrn-34-10 and vgg-11 have many of
        ours, theirs = networks.build(name, classes=7, channels=3), elsewhere(name, 7)
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs)


def test_pyautoattacks_network_is_robustbenchs():
    network, theirs = (
        filled(networks.build("resnet-18-pyautoattack", classes=10, channels=3)),
        elsewhere("resnet-18", 10),
    )
    assert source("resnet-18-pyautoattack", 10, 3, {}).imported == source("resnet-18", 10, 3, {}).imported
    theirs.load_state_dict(network.state_dict(), strict=True)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(theirs.eval()(images), network(images))


@pytest.mark.parametrize("foreign", [nn.Identity, lambda classes, channels: nn.Identity()])
def test_another_packages_network_has_to_be_robustbenchs_first(foreign, monkeypatch):
    monkeypatch.setattr(registry, "resolve", lambda kind, name: foreign)
    message = refusal(source, "their-net", 10, 3, {})
    assert "'their-net'" in message
    assert "model_zoo/architectures first" in message


# ---- refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"random": True}, "declared random"),
        ({"name": "Rice2020Overfitting"}, "own zoo"),
        ({"architecture": {"name": "digits-cn"}}, "digits-cnn"),
        ({"architecture": {"name": "resnet-20"}}, "does not fit ResNet20: missing stem.0.weight"),
        ({"dataset": "digit"}, "'digits'"),
        ({"results": [row("clean", 1, 2)]}, "no standard AutoAttack (clean)"),
        ({"results": [row("clean", 1, 2), row("AutoAttack, changed", 1, 2)]}, "no standard AutoAttack"),
        ({"results": [row("clean", 1, 2), autoattack(1, 2, notes=[CHANGED])]}, "no standard AutoAttack"),
        ({"results": [row("clean", 1, 2), autoattack(1, 2, kind="attack")]}, "no standard AutoAttack"),
        ({"results": [row("clean", 1, 2), autoattack(1, 2, version="rand")]}, "no standard AutoAttack"),
        ({"results": [autoattack(1, 2)]}, "no clean accuracy"),
    ],
)
def test_what_robustbench_cannot_take_is_refused_and_nothing_written(changes, words, small, tmp_path):
    assert words in refusal(bundle, card(small, **changes), small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_card_and_a_folder_that_is_there(small, tmp_path):
    given = card(small)
    assert "exists" in refusal(bundle, given, small, tmp_path)
    assert "no weights file" in refusal(bundle, given, tmp_path / "none.pt", tmp_path / "out")
    other = saved(networks.build("digits-cnn", classes=10, channels=1), tmp_path / "other.safetensors")
    assert given.weights["sha256"] in refusal(bundle, given, other, tmp_path / "out")
    misnamed = card(small, architecture={"name": "resnet-20"})
    assert refusal(bundle, misnamed, small, tmp_path / "out").startswith(f"{small} does not fit")
    assert not (tmp_path / "out").exists()


def test_arguments_that_change_the_class_are_not_lost(tmp_path):
    path = saved(networks.build("wrn-28-10", classes=10, channels=3, activation="silu"), tmp_path / "m.safetensors")
    silu = {"name": "wrn-34-10", "arguments": {"activation": "silu"}}
    with pytest.raises(BadInput) as error:
        bundle(card(path, architecture=silu, dataset="cifar10"), path, tmp_path / "out")
    assert (error.value.code, error.value.field) == ("unsupported", "architecture.name")
    assert not (tmp_path / "out").exists()
    assert robustbench_source("wrn-34-10", 10, {}) is not None
    assert robustbench_source("wrn-34-10", 10, {"activation": "silu"}) is None


def test_a_card_of_the_imagenet_leaderboard_is_at_its_place(small):
    given = {"dataset": "imagenet", "threat": {"norm": "Linf", "eps": 4 / 255}, "link": "https://example.org"}
    whole = card(small, results=[row("clean", 4000, 5000), autoattack(2000, 5000)], **given)
    assert list(model_card.remarks(whole)) == []
    part = card(small, results=[row("clean", 800, 1000), autoattack(400, 1000)], **given)
    (remark,) = model_card.remarks(part)
    assert remark.endswith("a leaderboard takes 5,000.")
