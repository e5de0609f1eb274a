"""A stranger's folder: the good ones open, the bad ones get a named error, and nothing in them is ever run."""

import hashlib
import importlib.util
import os
import pickle
import struct
import tarfile
import time
import zipfile
from collections import Counter, OrderedDict
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from problems import tiny_net
from reports import report, result
from torch import nn

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.data import datasets
from atent_ext.models import networks, weights, wrappers
from atent_ext.storage import untrusted
from atent_ext.submissions import cards
from atent_ext.submissions import folder as submission_folder
from atent_ext.training import loop, recipes
from atent_ext.training.run_folder import RunFolder

CARD = {
    "name": "a-model",
    "authors": "A. Stranger",
    "architecture": {"name": "digits-cnn"},
    "dataset": "digits",
    "threat": {"norm": "Linf", "eps": 0.15},
    "license": "MIT",
}
SAVE = "a plain state dict is needed: torch.save(model.state_dict(), ...), or better a .safetensors file"
AGAIN = "download it again, from the link of the file itself"


def digits_cnn(seed=0):
    with seeded(seed):
        return networks.build("digits-cnn", classes=10, channels=1).eval()


def saved(obj, zipped=True):
    buffer = BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def submission(folder, weights, file="model.pt", /, **card):
    """The folder of a submission. weights: the bytes of the file, or what torch.save is to save. card: its fields."""
    assert file == Path(file).name  # a hostile name is for the card alone
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(weights if isinstance(weights, bytes) else saved(weights))
    (folder / "card.yaml").write_text(yaml.safe_dump(CARD | card))
    return folder


def refusal(folder, **options):
    with pytest.raises(BadInput) as error:
        submission_folder.read(folder, **options)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


def same_weights(network, other):
    mine, theirs = network.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    assert all(mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine)
    return True


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
    "Lightning": (prefixed("model."), ["the prefix 'model.' is taken off all names"]),
    "compiled": (prefixed("_orig_mod."), ["the prefix '_orig_mod.' is taken off all names"]),
    "both": (
        prefixed("module._orig_mod."),
        ["the prefix 'module.' is taken off all names", "the prefix '_orig_mod.' is taken off all names"],
    ),
    "a part compiled": (
        lambda state: {name.replace("0.", "0._orig_mod.", 1): tensor for name, tensor in state.items()},
        ["'_orig_mod.' of torch.compile is taken out of the names"],
    ),
    "state_dict": (inside("state_dict"), ["the weights under 'state_dict' are read"]),
    "checkpoint": (
        inside("model", epoch=3, optimizer={"lr": 0.1}),
        ["the weights under 'model' are read; left aside: 'epoch', 'optimizer'"],
    ),
    "net": (inside("net", acc=torch.tensor(0.9)), ["the weights under 'net' are read; left aside: 'acc'"]),
    "two deep": (
        inside("ema", "module", decay=0.99),
        [
            "the weights under 'ema' are read; left aside: 'decay'",
            "the weights under 'module' are read; left aside: 'decay'",
        ],
    ),
    "nested and prefixed": (
        lambda state: {"model_state_dict": prefixed("module.")(state)},
        ["the weights under 'model_state_dict' are read", "the prefix 'module.' is taken off all names"],
    ),
    "with numbers": (lambda state: {**state, "epoch": 3}, ["left aside, no tensors: 'epoch'"]),
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
        f"the weights under '{ema}' are read; they are averaged, which is what is reported; "
        "left aside: 'state_dict', 'epoch'",
    )


def test_an_averaged_model_of_torch_is_read(tmp_path):
    network = digits_cnn()
    averaged = torch.optim.swa_utils.AveragedModel(network)
    assert "n_averaged" in averaged.state_dict()
    opened = submission_folder.read(submission(tmp_path / "s", averaged.state_dict()))
    assert same_weights(opened.network, network)
    assert opened.notes == (
        "left aside: 'n_averaged', the counter of torch's AveragedModel",
        "the prefix 'module.' is taken off all names",
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
        f"the normalisation stored as '{before}mean', '{before}std' is that of the card",
        f"the prefix '{names}' is taken off all names",
    )
    remedy = "put mean and std under normalisation in card.yaml"
    other = submission(tmp_path / "other", state, normalisation={"mean": [0.3], "std": [0.5]})
    assert refusal(other) == (
        f"{other}/model.pt holds a normalisation, '{before}std' = (0.4), and the card says (0.5,); {remedy}"
    )
    none = submission(tmp_path / "none", state)
    assert refusal(none) == (
        f"{none}/model.pt holds a normalisation, '{before}mean' = (0.3), and the card says none; {remedy}"
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
    assert "is that of the card" in submission_folder.read(good).notes[0]
    other = submission(tmp_path / "other", state, normalisation={"mean": [0.0], "std": [2.0]})
    assert "'std' = (1), and the card says (2.0,)" in refusal(other)


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
        "wrong shape 0.weight (16, 3, 3, 3) for (16, 1, 3, 3); correct the architecture in card.yaml, or the file"
    )


def test_a_long_list_is_cut_after_a_dozen(tmp_path):
    folder = submission(tmp_path / "s", {f"x{k}": torch.zeros(1) for k in range(30)})
    message = refusal(folder)
    assert message.count("missing") == 8
    assert message.count("unknown") == 4
    assert message.endswith("'x3' and 26 more; correct the architecture in card.yaml, or the file")


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
        f"{folder}/model.pt has NaN or infinite weights in '0.bias', '8.weight'; send the weights of a healthy epoch"
    )


def test_weights_that_overflow_in_the_networks_precision_are_refused(tmp_path):
    state = {name: tensor.double() for name, tensor in digits_cnn().state_dict().items()}
    state["0.bias"][0] = 1e300
    assert "NaN or infinite weights in '0.bias'" in refusal(submission(tmp_path / "s", state))


@pytest.mark.parametrize("obj", [{}, {"epoch": 3, "weights": [torch.ones(1)]}, {0: torch.ones(1)}])
def test_a_file_without_tensors_by_name_is_refused(tmp_path, obj):
    assert "holds no tensors by name" in refusal(submission(tmp_path / "s", obj))


def test_weights_that_lie_too_deep_are_refused(tmp_path):
    folder = submission(tmp_path / "s", inside(*["model"] * 5)(digits_cnn().state_dict()))
    assert refusal(folder) == f"{folder}/model.pt holds no tensors by name, but 'model'; a plain state dict is needed"


def test_a_file_that_holds_no_mapping_is_refused(tmp_path):
    folder = submission(tmp_path / "s", [torch.ones(1)])
    assert refusal(folder) == f"{folder}/model.pt holds a list; a plain state dict of tensors is needed"


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


# ---- files that are no weights


def archive_of(kind):
    buffer = BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("storages"), BytesIO())
    else:
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(kind, b"x")
    return buffer.getvalue()


HTML = f"an HTML page, not weights: {AGAIN}"
NO_WEIGHTS = {
    b"": "empty: download it again",
    b"<!DOCTYPE html>\n<html><body>Quota exceeded</body></html>": HTML,
    b"\xef\xbb\xbf\n <HTML lang=en>": HTML,
    b"<?xml version='1.0'?><Error/>": f"an XML page, not weights: {AGAIN}",
    b'{"message": "Not Found"}': f"JSON text, not weights: {AGAIN}",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": (
        "a Git LFS pointer, not weights: fetch the file with `git lfs pull`"
    ),
    b"\x1f\x8b\x08\x00 a gzip": "a gzip archive, not weights: unpack it",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file of another library: convert it to a state dict of tensors",
    archive_of("tar"): f"a tar archive, as the first versions of torch wrote; {SAVE}",
}


@pytest.mark.parametrize("content", NO_WEIGHTS)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pth"])
def test_what_is_no_weights_file_is_said_to_be_what_it_is(tmp_path, name, content):
    folder = submission(tmp_path / "s", content, name)
    assert refusal(folder) == f"{folder / name} is {NO_WEIGHTS[content]}"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.pt", b"hello world", f"no file that torch.save wrote; {SAVE}"),
        ("model.safetensors", b"hello world", f"not a safetensors file; {SAVE}"),
        ("model.safetensors", b"\x08", f"not a safetensors file; {SAVE}"),
        ("model.safetensors", saved({}), "a file of torch.save by its first bytes; name it .pt"),
        ("model.safetensors", saved({}, zipped=False), "a file of torch.save by its first bytes; name it .pt"),
        ("model.pt", b"\x80\x02}.", f"a pickle that torch.save did not write; {SAVE}"),
        ("model.pt", archive_of("readme.txt"), f"a zip archive that torch.save did not write; {SAVE}"),
        ("model.pt", archive_of("m/constants.pkl"), f"a TorchScript program, which holds code; {SAVE}"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, name, content, said):
    folder = submission(tmp_path / "s", content, name)
    assert refusal(folder) == f"{folder / name} is {said}"


def test_a_header_whose_length_reads_like_another_kind_is_no_other_kind(tmp_path):
    state = digits_cnn().state_dict()
    header, _, numbers = split_safetensors(safetensors.torch.save(state))
    padded = header + b" " * (0x227B - len(header))  # 7b 22 are '{"', which starts a JSON text
    content = struct.pack("<Q", len(padded)) + padded + numbers
    assert content.startswith(b'{"')
    assert submission_folder.read(submission(tmp_path / "s", content, "model.safetensors")).notes == ()


def split_safetensors(content):
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], length, content[8 + length :]


@pytest.mark.parametrize("kind", ["model.safetensors", "model.pt", "old.pt"])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(tmp_path, kind, share):
    state = digits_cnn().state_dict()
    whole = safetensors.torch.save(state) if kind.endswith("safetensors") else saved(state, kind != "old.pt")
    folder = submission(tmp_path / "s", whole[: int(share * len(whole))], kind)
    message = refusal(folder)
    assert message.startswith(f"{folder / kind} ")
    if share >= 0.05:
        assert "cut off" in message or "not a whole safetensors file" in message


def test_a_truncated_file_says_how_much_is_missing(tmp_path):
    whole = saved({"weight": torch.zeros(1000)}, zipped=False)
    folder = submission(tmp_path / "s", whole[:-400])
    assert refusal(folder) == (
        f"{folder}/model.pt claims 4,000 bytes of tensors, and the file has {len(whole) - 400:,}: "
        "it is cut off or forged; download it again"
    )


# ---- hostile weights


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("hidden", ["whole", "value", "key", "beside"])
def test_a_pickle_with_code_is_refused_and_runs_nothing(tmp_path, zipped, hidden):
    marker, state = tmp_path / "marker", dict(digits_cnn().state_dict())
    trap = Trap(marker)
    evil = {
        "whole": trap,
        "value": state | {"0.weight": trap},
        "key": state | {trap: 1},
        "beside": {"state_dict": state, "args": [trap]},
    }
    content = saved(evil[hidden], zipped)
    torch.load(BytesIO(content), weights_only=False)  # the trap works, where someone lets it
    assert marker.exists()
    marker.unlink()
    folder = submission(tmp_path / "s", content)
    assert refusal(folder) == (
        f"{folder}/model.pt holds more than tensors: it names 'posix.system', which was not run; {SAVE}"
    )
    assert not marker.exists()


class Call:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def test_a_pickle_that_makes_a_huge_object_is_refused(tmp_path):
    """torch's own reader would fill the terabyte with zeros."""
    folder = submission(tmp_path / "s", {"x": Call(bytearray, (10**12,))})
    assert "holds more than tensors: it names '__builtin__.bytearray'" in refusal(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_key_whose_hash_never_ends_is_refused(tmp_path, zipped):
    pair = ()
    for _ in range(60):
        pair = (pair, pair)
    content = saved(Call(OrderedDict, (), None, None, iter([(pair, 1)])), zipped)
    start = time.monotonic()
    message = refusal(submission(tmp_path / "s", content))
    assert "broken, cut off, or holds more than tensors (TypeError: unhashable type: '_Tuple')" in message
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("kind", ["Counter", "OrderedDict"])
def test_a_call_that_takes_such_a_hash_is_refused(tmp_path, kind):
    content = saved(Call({"Counter": Counter, "OrderedDict": OrderedDict}[kind], (((1, 2),),)))
    assert f"(ValueError: collections.{kind} of other things than a mapping)" in refusal(
        submission(tmp_path / "s", content)
    )


def test_a_checkpoint_with_optimizer_and_schedule_is_read(tmp_path):
    network = digits_cnn()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 3])  # has a Counter
    state = {"net": network.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    more = {"where": torch.device("cpu"), "best": (0.5, None)}
    opened = submission_folder.read(submission(tmp_path / "s", state | more))
    assert same_weights(opened.network, network)
    assert opened.notes == ("the weights under 'net' are read; left aside: 'optimizer', 'schedule', 'where', 'best'",)


def test_a_mapping_whose_methods_are_replaced_is_refused(tmp_path):
    state = OrderedDict(digits_cnn().state_dict())
    state.get = 5
    message = refusal(submission(tmp_path / "s", {"state_dict": state}))
    assert "holds more than tensors (ValueError: an object with attributes)" in message


@pytest.fixture
def no_torch(monkeypatch):
    """Nothing is left to torch's own reader."""
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("torch.load was called"))


def rezipped(content, change, compression=zipfile.ZIP_STORED):
    """The torch zip anew, each member as `change(name, content)` says."""
    buffer = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for one in old.infolist():
            new.writestr(one.filename, change(one.filename, old.read(one)))
    return buffer.getvalue()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, no_torch):
    content = rezipped(
        saved({"weight": torch.zeros(4)}),
        lambda name, inside: bytes(50_000_000) if name.endswith("data/0") else inside,
        zipfile.ZIP_DEFLATED,
    )
    assert len(content) < 100_000
    folder = submission(tmp_path / "s", content)
    assert "is a zip with a compressed member" in refusal(folder)
    assert refusal(folder).endswith(f"torch.save compresses nothing; {SAVE}")


def overlapping(copies):
    """A zip whose directory names one member of 10 kB `copies` times."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/00", bytes(10_000))
    content, start = buffer.getvalue(), archive.start_dir
    directory = b"".join(content[start:-22].replace(b"m/00", b"m/%02d" % k) for k in range(copies))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, copies, copies, len(directory), start, 0)
    return content[:start] + directory + end


def test_a_zip_whose_members_overlap_is_refused(tmp_path, no_torch):
    folder = submission(tmp_path / "s", overlapping(90))
    assert refusal(folder) == f"{folder}/model.pt is a zip whose members are larger than the file; {SAVE}"


def test_tensor_data_that_is_shorter_than_it_claims_is_refused(tmp_path, no_torch):
    """torch believes the pickle, and would read memory that lies behind the data."""
    content = rezipped(
        saved({"weight": torch.zeros(1000)}), lambda name, inside: inside[:40] if name.endswith("data/0") else inside
    )
    folder = submission(tmp_path / "s", content)
    assert refusal(folder) == (
        f"{folder}/model.pt: tensor data '0' claims 4,000 bytes and has 40: "
        "the file is broken or forged; download it again"
    )


def test_an_enormous_pickle_is_refused(tmp_path, no_torch):
    content = saved({"weight": torch.zeros(1), "notes": "x" * (5 * 2**20)})
    assert "which no tensors need" in refusal(submission(tmp_path / "s", content))


def test_two_members_of_one_name_are_refused(tmp_path, no_torch):
    def twice(content):
        buffer = BytesIO(content)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("ARCHIVE/data.pkl", b"x")
        return buffer.getvalue()

    assert "is a zip with two members of one name" in refusal(submission(tmp_path / "s", twice(saved({}))))


def pickled_storages(*identities):
    """A torch zip whose pickle asks for storages by these persistent ids."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return identities[obj.number] if isinstance(obj, Asked) else None

    pickled, buffer = BytesIO(), BytesIO()
    Pickler(pickled, protocol=2).dump({str(k): Asked(k) for k in range(len(identities))})
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", pickled.getvalue())
        archive.writestr("m/data/0", bytes(16))
    return buffer.getvalue()


@dataclass
class Asked:
    number: int


FLOAT = torch.FloatStorage


@pytest.mark.parametrize(
    ("identities", "said"),
    [
        ([("storage", FLOAT, "0", "cpu", 4), ("storage", FLOAT, "0", "cpu", 8)], "ValueError: storage 0 has two sizes"),
        ([("storage", FLOAT, "0", "cpu", -4)], "ValueError: a storage that is none"),
        ([("storage", FLOAT, 0, "cpu", 4)], "ValueError: a storage that is none"),
        ([("storage", FLOAT, "0", "cpu", "4")], "ValueError: a storage that is none"),
        ([("module", FLOAT, "0", "cpu", 4)], "ValueError: a storage that is none"),
        ([("storage", OrderedDict, "0", "cpu", 4)], "KeyError: 'collections.OrderedDict'"),
        ([("storage", "x", "0", "cpu", 4)], "AttributeError: "),
        ([7], "TypeError: "),
    ],
)
def test_a_storage_that_is_none_is_refused(tmp_path, no_torch, identities, said):
    message = refusal(submission(tmp_path / "s", pickled_storages(*identities)))
    assert f"is broken, cut off, or holds more than tensors ({said}" in message


@pytest.mark.parametrize("key", ["1", "../data/0"])
def test_a_storage_that_is_not_in_the_file_is_refused(tmp_path, no_torch, key):
    folder = submission(tmp_path / "s", pickled_storages(("storage", FLOAT, key, "cpu", 4)))
    assert f"tensor data {key!r} claims 16 bytes and has 0: " in refusal(folder)


def test_a_zip_of_very_many_members_is_refused(tmp_path, no_torch):
    folder = submission(tmp_path / "s", b"PK\3\4" + 100_001 * b"PK\1\2")
    assert refusal(folder) == f"{folder}/model.pt is a zip of more than 100,000 members; {SAVE}"


@pytest.fixture
def no_safetensors(monkeypatch):
    monkeypatch.setattr(safetensors.torch, "load", lambda *arguments: pytest.fail("safetensors was called"))


@pytest.mark.parametrize("claimed", [10 * 2**30, 2**63, 2**64 - 1, 1000])
def test_a_header_longer_than_the_file_is_refused_before_it_is_read(tmp_path, no_safetensors, claimed):
    folder = submission(tmp_path / "s", struct.pack("<Q", claimed) + b'{"a": 1}', "model.safetensors")
    assert refusal(folder) == (
        f"{folder}/model.safetensors claims a header of {claimed:,} bytes, and the file has 16: "
        "it is cut off or forged; download it again"
    )


def test_a_header_over_the_limit_is_refused_in_a_file_that_is_long_enough(tmp_path, no_safetensors):
    folder = submission(tmp_path / "s", struct.pack("<Q", 10 * 2**30) + b"{", "model.safetensors")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(200_000_000)  # sparse
    assert "claims a header of 10,737,418,240 bytes" in refusal(folder)


@pytest.mark.parametrize(
    "header",
    [
        b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4000]}}',
        b'{"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        b'{"w":' * 20_000,
        b"{" + b"[" * 50_000,
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header):
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    folder = submission(tmp_path / "s", content, "model.safetensors")
    assert "model.safetensors is not a whole safetensors file" in refusal(folder)


# ---- hostile cards


def with_card(tmp_path, text):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    (folder / "card.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_a_yaml_with_an_object_tag_is_refused_and_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    text = f"name: !!python/object/apply:os.system ['touch {marker}']\n"
    yaml.unsafe_load(text)  # the trap works, where someone lets it
    assert marker.exists()
    marker.unlink()
    folder = with_card(tmp_path, text)
    assert refusal(folder) == (
        f"{folder}/card.yaml has the YAML tag 'tag:yaml.org,2002:python/object/apply:os.system'; "
        "only plain values are read, remove the tag"
    )
    assert not marker.exists()


def test_a_yaml_bomb_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    folder, start = with_card(tmp_path, "\n".join(lines)), time.monotonic()
    assert refusal(folder) == f"{folder}/card.yaml has the YAML alias 'a0'; write the value out"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("text", ["[" * 90_000, "{a: " * 20_000, "- " * 40_000, "? " * 40_000])
def test_a_yaml_without_a_bottom_is_refused_at_once(tmp_path, text):
    folder, start = with_card(tmp_path, text), time.monotonic()
    assert refusal(folder) == f"{folder}/card.yaml is nested deeper than 20 levels; write it flat"
    assert time.monotonic() - start < 5


def test_a_card_that_is_too_large_is_refused(tmp_path):
    folder = with_card(tmp_path, "a" * 100_001)
    assert refusal(folder) == f"{folder}/card.yaml has 100,001 bytes; at most 100,000 are read"


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\x00", "a: [1", "a: b: c", "day: 2024-13-45", "x: " + "9" * 5000, "\x1b[2J"]
)
def test_a_card_that_is_no_yaml_is_refused(tmp_path, text):
    folder = with_card(tmp_path, text)
    assert refusal(folder).startswith(f"{folder}/card.yaml is not YAML: ")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", ".hidden", "a/b", "a\\b", "a\nb", "", "x" * 101])
def test_a_name_that_is_a_path_is_refused(tmp_path, name):
    folder = submission(tmp_path / "s", digits_cnn().state_dict(), name=name)
    assert refusal(folder).startswith(f"{folder}/card.yaml is no card: 'name': ")


@pytest.mark.parametrize("dataset", ["folder:/etc", "npz:../x.npz", "../digits", "/etc"])
def test_a_data_set_that_is_a_path_is_refused(tmp_path, dataset):
    folder = submission(tmp_path / "s", digits_cnn().state_dict(), dataset=dataset)
    assert refusal(folder) == (
        f"{folder}/card.yaml is no card: 'dataset': {dataset!r} is no name of a data set; "
        "a card names no files and folders"
    )


# ---- hostile recipes


def with_recipe(tmp_path, **changes):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    raw = yaml.safe_load(recipes.dump(recipes.load("digits-linf-pgd-at")))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw | changes))
    return folder


def test_a_recipe_is_read(tmp_path):
    opened = submission_folder.read(with_recipe(tmp_path))
    assert opened.recipe == recipes.load("digits-linf-pgd-at")
    assert opened.notes == ()


@pytest.mark.parametrize("base", ["../secret", "/etc/passwd", "_digits-linf"])
def test_the_base_of_a_recipe_is_not_followed(tmp_path, base):
    (tmp_path / "secret.yaml").write_text("a: 1")
    folder = with_recipe(tmp_path, base=base)
    assert refusal(folder) == (
        f"{folder}/recipe.yaml has a base, {base!r}; no other file is followed, write the recipe whole"
    )


def test_what_a_recipe_starts_from_is_said_and_not_opened(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # who opened it would wait for ever
    opened = submission_folder.read(with_recipe(tmp_path, init_from=str(pipe)))
    assert opened.notes == (f"the recipe starts from {str(pipe)[:100]!r}, which is not looked at",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("objective: {name: 'os:system'}", "unknown objective 'os:system'"),
        ("epochs: -1", "epochs is -1"),
        ("name: 0x" + "f" * 5000, "recipe.yaml is no recipe: ValueError: "),
    ],
)
def test_a_recipe_that_is_none_is_refused(tmp_path, line, said):
    folder = with_recipe(tmp_path)
    with (folder / "recipe.yaml").open("a") as file:
        file.write(f"{line}\n")  # the last of two counts
    assert said in refusal(folder)


def test_a_recipe_without_fields_is_refused(tmp_path):
    folder = with_recipe(tmp_path)
    (folder / "recipe.yaml").write_text("- 1")
    assert refusal(folder) == f"{folder}/recipe.yaml holds no fields; a recipe is a mapping of names to values"


def test_a_recipe_with_an_object_tag_is_refused(tmp_path):
    folder, marker = with_recipe(tmp_path), tmp_path / "marker"
    (folder / "recipe.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {marker}']\n")
    assert "recipe.yaml has the YAML tag" in refusal(folder)
    assert not marker.exists()


# ---- the folder


@pytest.mark.parametrize("name", ["card.yaml", "model.pt", "recipe.yaml", "README.md"])
@pytest.mark.parametrize("there", [True, False])
def test_symbolic_links_are_refused(tmp_path, name, there):
    folder = with_recipe(tmp_path)
    outside = tmp_path / "outside"
    if there:
        outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    assert refusal(folder) == f"{name!r} in {folder} is a symbolic link; put the file itself there"


def test_a_linked_folder_is_refused(tmp_path):
    folder = with_recipe(tmp_path)
    (folder / "pictures").symlink_to(tmp_path)
    assert refusal(folder) == f"'pictures' in {folder} is a symbolic link; put the file itself there"


def test_a_file_that_becomes_a_link_after_the_check_is_refused(tmp_path, monkeypatch):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    listing = untrusted.files

    def list_and_swap(where):
        found = listing(where)
        (tmp_path / "outside").write_bytes((folder / "card.yaml").read_bytes())
        (folder / "card.yaml").unlink()
        (folder / "card.yaml").symlink_to(tmp_path / "outside")
        return found

    monkeypatch.setattr(untrusted, "files", list_and_swap)
    assert refusal(folder) == f"{folder}/card.yaml is a symbolic link; put the file itself there"


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"0123456789")
    monkeypatch.setattr(untrusted, "_size", lambda *arguments: 5)
    with pytest.raises(BadInput, match="x changed while it was read; try again"):
        untrusted.read(tmp_path / "x", 10)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    os.mkfifo(folder / "pipe")
    assert refusal(folder) == f"'pipe' in {folder} is neither a file nor a folder; remove it"
    with pytest.raises(BadInput, match="pipe is not a plain file; put the file itself there"):
        untrusted.read(folder / "pipe", 10)


def test_a_name_that_cannot_be_printed_is_refused(tmp_path):
    folder = submission(tmp_path / "s", digits_cnn().state_dict(), "a\nb.pt")
    assert refusal(folder) == f"'a\\nb.pt' in {folder} has a name that cannot be printed; rename it"


def test_too_many_files_and_too_deep_ones_are_refused(tmp_path):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    (folder / "plots").mkdir()
    for k in range(97):
        (folder / "plots" / f"{k}.png").touch()
    assert submission_folder.read(folder).notes == ()  # two files, a folder, 97 files
    (folder / "plots" / "97.png").touch()
    assert refusal(folder) == f"{folder} has more than 100 files; leave in it what the submission needs"
    deep = submission(tmp_path / "deep", digits_cnn().state_dict())
    (deep / "a" / "b").mkdir(parents=True)
    assert refusal(deep) == f"'{deep}/a/b' lies deeper than 2 levels in {deep}; keep it flat"


def test_there_is_one_weights_file_and_a_card(tmp_path):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    (folder / "sub").mkdir()
    (folder / "sub" / "other.safetensors").touch()
    assert refusal(folder) == (f"{folder} has 2 weights files ('model.pt', 'sub/other.safetensors'); leave one of them")
    (folder / "model.pt").unlink()
    assert refusal(folder) == (
        f"the weights lie in 'sub/other.safetensors'; put them into {folder} itself, as model.safetensors, .pt or .pth"
    )
    (folder / "sub" / "other.safetensors").unlink()
    assert refusal(folder) == f"there is no weights file in {folder}; put model.safetensors there, or one .pt or .pth"
    (folder / "card.yaml").unlink()
    (folder / "model.pt").touch()
    assert refusal(folder) == (f"there is no card.yaml in {folder}; `atent submission new RUN --out DIR` writes one")
    assert refusal(folder / "nowhere") == f"there is no folder {folder}/nowhere"


def test_weights_over_the_limit_are_refused(tmp_path):
    folder = submission(tmp_path / "s", bytes(1001))
    assert refusal(folder, most=1000) == f"{folder}/model.pt has 1,001 bytes; at most 1,000 are read"
    with (folder / "model.pt").open("r+b") as file:
        file.truncate(4 * 2**30 + 1)  # sparse
    assert refusal(folder) == f"{folder}/model.pt has 4,294,967,297 bytes; at most 4,294,967,296 are read"


# ---- writing one


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("submissions") / "run"
    changes = ["epochs=1", "examples=200", "objective.steps=1", "validation.count=40", "validation.steps=1"]
    loop.fit(recipes.load("digits-linf-pgd-at", changes), datasets.load("digits"), folder)
    return folder


def report_of(run, path, **changes):
    found = [("clean", 0.97), ("PGD-40", 0.85), ("AutoAttack", 0.8125), ("worst case", 0.81)]
    digest = hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()
    report(*(result(*one) for one in found), **{"weights_sha256": digest} | changes).save(path)
    return path


def test_a_run_becomes_a_submission_that_reads_back(run, tmp_path):
    link = "https://example.org/paper"
    given = {"name": "mine", "authors": "A. Author, B. Author", "license": "MIT", "link": link, "venue": "X 2026"}
    out = submission_folder.new(run, tmp_path / "new" / "s", **given, report=report_of(run, tmp_path / "r.json"))
    assert sorted(path.name for path in out.iterdir()) == ["card.yaml", "model.safetensors", "recipe.yaml"]
    opened = submission_folder.read(out)
    recipe = RunFolder(run).recipe()
    assert same_weights(opened.network, RunFolder(run).load_model(datasets.load("digits")))
    assert (opened.recipe, opened.notes) == (recipe, ())
    card = opened.submission
    assert {field: getattr(card, field) for field in given} == given
    assert (card.architecture, card.dataset, card.threat) == (recipe.model, "digits", recipe.threat)
    assert card.training == f"{recipe.description} Recipe: {recipe.name}."
    assert [(claim.what, claim.percent, claim.attack) for claim in card.claims] == [
        ("clean", 97.0, ""),
        ("robust", 81.0, "worst case of PGD-40, AutoAttack"),
    ]
    assert card.claims[1].source == "r.json: test, the first 200 of 360"


def test_without_a_report_nothing_is_claimed_and_the_name_is_the_recipes(run, tmp_path):
    out = submission_folder.new(run, tmp_path, authors="A", license="MIT")  # an empty folder may be there
    card = submission_folder.read(out).submission
    assert (card.name, card.claims, card.venue) == ("digits-linf-pgd-at", (), "Unpublished")


def refused(run, out, **fields):
    with pytest.raises(BadInput) as error:
        submission_folder.new(run, out, **({"authors": "A", "license": "MIT"} | fields))
    return str(error.value)


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert refused(run, tmp_path) == f"{tmp_path} is there already; name a new folder"
    assert refused(run, tmp_path / "file") == f"{tmp_path}/file is there already; name a new folder"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "mine")]


def test_a_field_that_does_not_fit_leaves_nothing_behind(run, tmp_path):
    out = tmp_path / "s"
    assert "'authors': " in refused(run, out, authors="")
    assert "'link': an address that starts with https://" in refused(run, out, link="javascript:alert(1)")
    assert "'name': letters, digits" in refused(run, out, name="../x")
    assert refused(tmp_path, out) == f"{tmp_path} holds no run: there is no recipe.yaml in it"
    (tmp_path / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    assert refused(tmp_path, out).startswith(f"{tmp_path} holds no weights yet: there is no weights.safetensors in it")
    assert not out.exists()


def test_a_report_of_something_else_is_refused(run, tmp_path):
    out, path = tmp_path / "s", tmp_path / "r.json"
    other = report_of(run, path, weights_sha256="0" * 64)
    assert (
        refused(run, out, report=other) == f"{path} is a report of other weights; score the run anew with `atent eval`"
    )
    other = report_of(run, path, threat={"norm": "Linf", "eps": 0.1})
    assert f"{path} is a report under norm='Linf' eps=0.1, and the run's threat model is norm='Linf' eps=0.15" in (
        refused(run, out, report=other)
    )
    other = report_of(run, path, part="held out of training")
    assert f"{path} is a report on images held out of training, the first 200 of 360; claims are of test images" in (
        refused(run, out, report=other)
    )
    path.write_text("[]")
    assert "is no report of `atent eval`" in refused(run, out, report=path)
    assert f"{tmp_path / 'nowhere.json'} cannot be read" in refused(run, out, report=tmp_path / "nowhere.json")
    assert not out.exists()


def test_the_claims_are_of_the_kinds_of_results_and_not_of_their_names(run, tmp_path):
    digest = hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()
    named = report(
        result("none", 0.97, kind="clean"),
        result("clean", 0.85, kind="attack"),
        result("all", 0.81, kind="worst_case"),
        weights_sha256=digest,
    )
    named.save(tmp_path / "r.json")
    submission_folder.new(run, tmp_path / "s", authors="A", license="MIT", report=tmp_path / "r.json")
    claims = submission_folder.read(tmp_path / "s").submission.claims
    assert [(one.what, one.percent, one.attack) for one in claims] == [
        ("clean", 97.0, ""),
        ("robust", 81.0, "worst case of clean"),
    ]
