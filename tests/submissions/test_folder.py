"""A stranger's folder that is sound is read, and one that does not fit gets a named error."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
import safetensors.torch
import torch
from problems import tiny_net
from strangers import digits_cnn, refusal, same_weights, saved, submission
from torch import nn

from atent_ext.core import registry
from atent_ext.data import datasets
from atent_ext.models import networks, weights, wrappers
from atent_ext.submissions import cards
from atent_ext.submissions import folder as submission_folder

# ---- what is read


@pytest.mark.parametrize("kind", ["model.safetensors", "model.pt", "epoch_90.pth", "old.pt"])
def test_weights_are_read_as_they_are(tmp_path, kind):
    network = digits_cnn()
    state = network.state_dict()
    content = safetensors.torch.save(state) if kind.endswith("safetensors") else saved(state, kind != "old.pt")
    folder = submission(tmp_path / "s", content, kind)
    opened = submission_folder.read(folder)
    assert same_weights(opened.network, network)
    assert not any(module.training for module in opened.network.modules())
    assert (opened.weights, opened.bytes) == (folder / kind, len(content))
    assert opened.sha256 == hashlib.sha256(content).hexdigest()
    assert (opened.parameters, opened.notes, opened.recipe) == (57_110, (), None)
    assert opened.submission == cards.read_submission(folder / "card.yaml")


def test_reading_leaves_the_random_state_alone(tmp_path):
    folder, before = submission(tmp_path / "s", digits_cnn().state_dict()), torch.get_rng_state()
    submission_folder.read(folder)
    assert torch.equal(torch.get_rng_state(), before)


def prefixed(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def inside(*names, **others):
    def wrap(state):
        for name in reversed(names):
            state = {name: state} | others
        return state

    return wrap


WRAPPED = {
    "DataParallel": (prefixed("module."), ["the prefix 'module.' is taken off all names"]),
    "Lightning": (
        prefixed("model."),
        [
            "the prefix 'model.' is taken off all names",
            "no normalisation is stated, and none is applied; had 'model' one, state it",
        ],
    ),
    "compiled": (prefixed("_orig_mod."), ["the prefix '_orig_mod.' is taken off all names"]),
    "both": (
        prefixed("module._orig_mod."),
        ["the prefix 'module._orig_mod.' is taken off all names"],
    ),
    "a part compiled": (
        lambda state: {name.replace("0.", "0._orig_mod.", 1): tensor for name, tensor in state.items()},
        ["'_orig_mod' of a wrapper around a part is taken out of the names"],
    ),
    "state_dict": (inside("state_dict"), ["the weights under 'state_dict' are read"]),
    "checkpoint": (
        inside("model", epoch=3, optimizer={"lr": 0.1}),
        ["the weights under 'model' are read", "left aside: 'epoch', 'optimizer'"],
    ),
    "net": (inside("net", acc=torch.tensor(0.9)), ["the weights under 'net' are read", "left aside: 'acc'"]),
    "two deep": (
        inside("ema", "module", decay=0.99),
        ["the weights under 'ema.module' are read", "left aside: 'decay', 'ema.decay'"],
    ),
    "nested and prefixed": (
        lambda state: {"model_state_dict": prefixed("module.")(state)},
        ["the weights under 'model_state_dict' are read", "the prefix 'module.' is taken off all names"],
    ),
    "with numbers": (lambda state: {**state, "epoch": 3}, ["left aside: 'epoch'"]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_common_wrappers_are_understood(tmp_path, name):
    wrap, notes = WRAPPED[name]
    network = digits_cnn()
    opened = submission_folder.read(submission(tmp_path / "s", wrap(network.state_dict())))
    assert same_weights(opened.network, network)
    assert list(opened.notes) == notes


@pytest.mark.parametrize("ema", ["state_dict_ema", "ema"])
def test_averaged_weights_are_taken_before_the_raw_ones(tmp_path, ema):
    raw, averaged = digits_cnn(1), digits_cnn(2)
    opened = submission_folder.read(
        submission(tmp_path / "s", {"state_dict": raw.state_dict(), ema: averaged.state_dict(), "epoch": 3})
    )
    assert same_weights(opened.network, averaged)
    assert opened.notes == (
        f"the weights under '{ema}' are read; they are averaged, which is what is reported; not read: 'state_dict'",
        "left aside: 'epoch'",
    )


def test_an_averaged_model_of_torch_is_read(tmp_path):
    network = digits_cnn()
    averaged = torch.optim.swa_utils.AveragedModel(network)
    assert "n_averaged" in averaged.state_dict()
    opened = submission_folder.read(submission(tmp_path / "s", averaged.state_dict()))
    assert same_weights(opened.network, network)
    assert opened.notes == (
        "the prefix 'module.' is taken off all names",
        "left aside: 'n_averaged'",
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", ["model.safetensors", "model.pt"])
def test_other_precisions_are_converted_and_said(tmp_path, dtype, kind):
    network = digits_cnn().to(getattr(torch, dtype))
    state = network.state_dict()
    content = safetensors.torch.save(state) if kind.endswith("safetensors") else saved(state)
    opened = submission_folder.read(submission(tmp_path / "s", content, kind))
    assert same_weights(opened.network, network.float())
    assert opened.notes == (f"8 tensors converted from {dtype} to float32",)


def test_counters_of_batchnorm_may_be_of_another_type_or_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.MODELS, "tiny-net", "problems:tiny_net")
    network = tiny_net()
    counter = next(name for name in network.state_dict() if name.endswith("num_batches_tracked"))
    network.state_dict()[counter].fill_(7)
    changed = {**network.state_dict(), counter: torch.tensor(7, dtype=torch.int32)}
    opened = submission_folder.read(submission(tmp_path / "a", changed, architecture={"name": "tiny-net"}))
    assert same_weights(opened.network, network)
    assert opened.notes == ("1 tensors converted from int32 to int64",)
    del changed[counter]
    opened = submission_folder.read(submission(tmp_path / "b", changed, architecture={"name": "tiny-net"}))
    assert int(opened.network.state_dict()[counter]) == 0
    assert opened.notes == ("1 BatchNorm counters (num_batches_tracked) are not in the file and start at 0",)


# ---- normalisation


def test_the_normalisation_of_the_card_is_applied_to_images_in_0_to_1(tmp_path):
    network, x = digits_cnn(), torch.rand(3, 1, 8, 8)
    given = {"mean": [0.3], "std": [0.4]}
    opened = submission_folder.read(submission(tmp_path / "s", network.state_dict(), normalisation=given))
    with torch.no_grad():
        assert torch.equal(opened.network(x), network((x - torch.tensor(0.3)) / torch.tensor(0.4)))
    assert isinstance(opened.network, wrappers.Normalised)
    assert dict(opened.network.named_buffers()).keys() == {"mean", "std"}
    assert opened.network.state_dict().keys() == {f"network.{name}" for name in network.state_dict()}
    assert (opened.parameters, opened.network.training) == (57_110, False)


def test_a_normalisation_for_other_channels_is_refused(tmp_path):
    given = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    folder = submission(tmp_path / "s", digits_cnn().state_dict(), normalisation=given)
    assert refusal(folder) == (
        "normalisation has 3 means, and the images have 1 channels; give one mean and one std per channel"
    )


@pytest.mark.parametrize(("before", "names"), [("normalize.", "model."), ("0.", "1."), ("", "network.")])
def test_a_stored_normalisation_must_be_that_of_the_card(tmp_path, before, names):
    network = digits_cnn()
    stored = {f"{before}mean": torch.full((1, 1, 1, 1), 0.3), f"{before}std": torch.full((1, 1, 1, 1), 0.4)}
    state = stored | prefixed(names)(network.state_dict())
    good = submission(tmp_path / "good", state, normalisation={"mean": [0.3], "std": [0.4]})
    opened = submission_folder.read(good)
    assert same_weights(opened.network.network, network)
    assert opened.notes == (
        f"the prefix '{names}' is taken off all names",
        f"the stored normalisation, '{before}mean', '{before}std', is the stated one",
    )
    remedy = "state its mean and std under normalisation in card.yaml, or by --normalisation"
    other = submission(tmp_path / "other", state, normalisation={"mean": [0.3], "std": [0.5]})
    assert refusal(other) == (
        f"{other}/model.pt holds a normalisation, '{before}std' = (0.4), and (0.5,) is stated; {remedy}"
    )
    for name, given in (("open", {}), ("none", {"normalisation": "none"})):
        none = submission(tmp_path / name, state, **given)
        assert refusal(none) == (
            f"{none}/model.pt holds a normalisation, '{before}mean' = (0.3), and none is stated; {remedy}"
        )


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (0,), (1, 3, 1, 1)])
def test_a_stored_normalisation_that_is_none_per_channel_is_refused(tmp_path, shape):
    state = {"mean": torch.full(shape, 0.3), **digits_cnn().state_dict()}
    for name, given in (("none", None), ("one", {"mean": [0.3], "std": [0.4]})):
        folder = submission(tmp_path / name, state, normalisation=given)
        assert "model.pt holds a normalisation, 'mean' = (" in refusal(folder)


def test_a_stored_normalisation_in_whole_numbers_is_a_normalisation(tmp_path):
    state = {"mean": torch.tensor([0]), "std": torch.tensor([1]), **digits_cnn().state_dict()}
    good = submission(tmp_path / "good", state, normalisation={"mean": [0.0], "std": [1.0]})
    assert "is the stated one" in submission_folder.read(good).notes[0]
    other = submission(tmp_path / "other", state, normalisation={"mean": [0.0], "std": [2.0]})
    assert "'std' = (1), and (2.0,) is stated" in refusal(other)


# ---- the shipped checkpoints


def shipped(package, *parts):
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]).joinpath(*parts)


@pytest.mark.parametrize("name", ["mnist_lenet5_clntrained", "mnist_lenet5_advtrained"])
def test_the_checkpoints_of_advertorch_are_read(tmp_path, name):
    path = shipped("advertorch_examples", "trained_models", f"{name}.pt")
    card = {"architecture": {"name": "lenet5-advertorch"}, "dataset": "mnist", "name": name}
    opened = submission_folder.read(submission(tmp_path / "s", path.read_bytes(), path.name, **card))
    direct = networks.build("lenet5-advertorch", classes=10, channels=1)
    weights.load_weights(direct, path)
    assert same_weights(opened.network, direct)
    assert opened.notes == ()
    assert opened.parameters == sum(p.numel() for p in direct.parameters())
    assert opened.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_checkpoint_of_pyautoattack_is_read(tmp_path):
    path = shipped("pyautoattack", "examples", "model_test.pt")
    card = {"architecture": {"name": "resnet-18-pyautoattack"}, "dataset": "cifar10"}
    opened = submission_folder.read(submission(tmp_path / "s", path.read_bytes(), **card))
    direct = networks.build("resnet-18-pyautoattack", classes=10, channels=3)
    weights.load_weights(direct, path)
    assert same_weights(opened.network, direct)
    assert opened.notes == ()
    assert opened.parameters == 11_173_962


# ---- shapes of data sets


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_the_known_shapes_are_those_of_the_data_sets(name, request):
    root = request.getfixturevalue("data_root") if name == "mnist" else None
    images = datasets.load(name, root)
    assert submission_folder.shape(name) == (len(images.classes), tuple(images.test.images.shape[1:]))


def test_a_data_set_of_another_package_is_loaded_for_its_shape(monkeypatch):
    def other(root, download):
        split = datasets.Split(torch.zeros(4, 3, 5, 6), torch.zeros(4, dtype=torch.long))
        return datasets.DataSet("other", ("a", "b"), split, split)

    monkeypatch.setattr(registry, "entries", lambda kind: {"other": "x:y"})
    monkeypatch.setattr(registry, "resolve", lambda kind, name: other)
    assert submission_folder.shape("other") == (2, (3, 5, 6))


def test_an_unknown_data_set_is_refused(tmp_path):
    assert (
        refusal(submission(tmp_path / "s", b"", dataset="mnits")) == "unknown data set 'mnits'; did you mean 'mnist'?"
    )


# ---- what does not fit


def test_missing_unknown_and_wrong_shapes_are_listed_together(tmp_path):
    state = digits_cnn().state_dict()
    state["head\n.weight"] = state.pop("8.weight")
    state["0.weight"] = torch.zeros(16, 3, 3, 3)
    folder = submission(tmp_path / "s", state)
    assert refusal(folder) == (
        f"{folder}/model.pt does not fit DigitsCNN: missing 8.weight, unknown 'head\\n.weight', "
        "wrong shape 0.weight (16, 3, 3, 3) for (16, 1, 3, 3); 6 of 8 tensors fit; "
        "name the architecture and the arguments that these weights were trained with"
    )


def test_a_long_list_is_cut_after_a_dozen(tmp_path):
    folder = submission(tmp_path / "s", {f"x{k}": torch.zeros(1) for k in range(30)})
    message = refusal(folder)
    assert message.count("missing") == 8
    assert message.count("unknown") == 4
    assert (
        "'x3' and 26 more; 0 of 8 tensors fit; save the whole state dict of the network, or name the architecture"
        in message
    )


def test_a_tensor_larger_than_its_file_is_refused_by_its_shape(tmp_path):
    state = digits_cnn().state_dict()
    state["0.weight"] = torch.zeros(1).expand(10**6, 10**6)
    folder = submission(tmp_path / "s", state)
    assert "wrong shape 0.weight (1000000, 1000000) for (16, 1, 3, 3)" in refusal(folder)


def test_complex_weights_are_refused(tmp_path):
    state = digits_cnn().state_dict()
    content = safetensors.torch.save({**state, "0.bias": state["0.bias"].to(torch.complex64)})
    assert "wrong type 0.bias complex64" in refusal(submission(tmp_path / "s", content, "model.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    state = digits_cnn().state_dict()
    state["0.bias"][3] = value
    state["8.weight"][0, 0] = value
    folder = submission(tmp_path / "s", state)
    assert refusal(folder) == (
        f"{folder}/model.pt has NaN or infinite weights in '0.bias', '8.weight'; use those of a healthy epoch"
    )


def test_weights_that_overflow_in_the_networks_precision_are_refused(tmp_path):
    state = {name: tensor.double() for name, tensor in digits_cnn().state_dict().items()}
    state["0.bias"][0] = 1e300
    assert "NaN or infinite weights in '0.bias'" in refusal(submission(tmp_path / "s", state))


@pytest.mark.parametrize("obj", [{}, {"epoch": 3, "weights": [torch.ones(1)]}, {0: torch.ones(1)}, [torch.ones(1)]])
def test_a_file_without_tensors_by_name_is_refused(tmp_path, obj):
    assert "holds no tensors by name" in refusal(submission(tmp_path / "s", obj))


def test_weights_that_lie_too_deep_are_refused(tmp_path):
    state = digits_cnn().state_dict()
    assert submission_folder.read(submission(tmp_path / "s", inside(*["model"] * 20)(state))).notes
    folder = submission(tmp_path / "s", inside(*["model"] * 21)(state))
    assert refusal(folder) == f"{folder}/model.pt is nested deeper than 20 levels; save the state dict alone"


def test_a_file_that_holds_one_tensor_is_refused(tmp_path):
    folder = submission(tmp_path / "s", torch.ones(1))
    assert refusal(folder) == f"{folder}/model.pt holds a Tensor; a plain state dict of tensors is needed"


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ({"name": "digit-cnn"}, "unknown model 'digit-cnn'; did you mean 'digits-cnn'?"),
        ({"name": "../../evil"}, "unknown model '../../evil'; known: "),
        ({"name": "os:system"}, "unknown model 'os:system'; "),
        ({"name": "digits-cnn", "arguments": {"width": 3}}, "unknown argument of model 'digits-cnn': 'width'"),
        (
            {"name": "digits-cnn", "arguments": {"classes": 3}},
            "architecture.arguments.classes is decided by the data set; remove it from",
        ),
        ({"name": "small-cnn"}, "model 'small-cnn' cannot take images of 1x8x8"),
        ({"name": "small-cnn", "arguments": {"dropout": "x"}}, "dropout is 'x'; it must be a probability in [0, 1)"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(tmp_path, architecture, said):
    assert said in refusal(submission(tmp_path / "s", b"", architecture=architecture))


def test_a_network_that_fails_on_its_arguments_gets_a_named_error(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "resolve", lambda kind, name: lambda classes, channels, width: nn.Linear(width, 2))
    asked = {"name": "digits-cnn", "arguments": {"width": "wide"}}
    message = refusal(submission(tmp_path / "s", b"", architecture=asked))
    assert message.startswith("architecture 'digits-cnn' does not take {'width': 'wide'} (TypeError: ")
    assert message.endswith("; correct it in card.yaml")
