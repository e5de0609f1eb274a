import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from problems import small_net
from torch import nn

from atent_ext.core.errors import BadInput
from atent_ext.models import weights
from atent_ext.storage import files

KINDS = (".safetensors", ".pt", ".pth")
NOT_TORCH = (
    b"",
    b"hello world",
    b"h",
    b"j",
    b"0",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    b"<!DOCTYPE html>\n<html><body>404</body></html>",
    b"}q\x00X\x03",
    b"PK\x03\x04 not really a zip",
)


def odd_weights(dtype=torch.float32):
    """A network with weights that a copy may change: -0, the smallest and the largest numbers."""
    model = small_net(dtype=dtype, norm=True)
    odd = [-0.0, 1e-45, 1e-40, 1 / 3, 3.0e38]
    with torch.no_grad():
        model.conv.weight.view(-1)[: len(odd)] = torch.tensor(odd, dtype=dtype)
        model.norm.num_batches_tracked.fill_(2**40 + 1)
        model.norm.running_var.mul_(1.25)
    return model


def test_only_a_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "device"), ("folder", "folder")):
        message = refusal("exists", files.write, tmp_path / name, "text")
        assert message.endswith(f"{name} is a {kind}; name a file to write")
    assert (tmp_path / "pipe").is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder"}


def bits(state):
    return {name: (tensor.dtype, tensor.shape, tensor.contiguous().numpy().tobytes()) for name, tensor in state.items()}


def refusal(code, call, *arguments):
    """The message of the BadInput that a call raises with this code, about its path."""
    with pytest.raises(BadInput) as error:
        call(*arguments)
    assert (error.value.code, error.value.field) == (code, "path")
    message = str(error.value)
    assert "\n" not in message
    return message


def save(obj, path, zipped=True):
    torch.save(obj, path, _use_new_zipfile_serialization=zipped)
    return path


def save_as(model, path):
    """Weights in the form that the suffix says."""
    if path.suffix == ".safetensors":
        weights.save_weights(model, path)
    else:
        save(model.state_dict(), path)
    return path


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


# ---- weights


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_come_back_bit_for_bit(tmp_path, suffix, dtype):
    model, other = odd_weights(dtype), small_net(seed=1, dtype=dtype, norm=True)
    assert bits(other.state_dict()) != bits(model.state_dict())
    weights.load_weights(other, save_as(model, tmp_path / f"w{suffix}"))
    assert bits(other.state_dict()) == bits(model.state_dict())


def test_weights_are_plain_safetensors(tmp_path):
    model = odd_weights()
    model.conv.weight.data = model.conv.weight.data.transpose(2, 3)  # not contiguous
    weights.save_weights(model, tmp_path / "w.safetensors")
    assert bits(safetensors.torch.load_file(tmp_path / "w.safetensors")) == bits(model.state_dict())


def test_the_old_torch_format_is_read_as_well(tmp_path):
    model, other = odd_weights(), small_net(seed=1, dtype=torch.float32, norm=True)
    weights.load_weights(other, save(model.state_dict(), tmp_path / "w.pt", zipped=False))
    assert bits(other.state_dict()) == bits(model.state_dict())


@pytest.mark.parametrize("suffix", KINDS)
def test_missing_weights_are_refused(tmp_path, suffix):
    for path in (tmp_path / f"w{suffix}", tmp_path):
        assert refusal("missing", weights.load_weights, nn.Linear(2, 2), path) == f"there is no weights file {path}"


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize(
    ("stored", "named"),
    [
        (nn.Linear(3, 4), ["wrong shape weight (4, 3) for (4, 2)"]),
        (nn.Linear(2, 4, bias=False), ["missing bias"]),
        (
            nn.Linear(2, 5),
            ["wrong shape weight (5, 2)", "wrong shape bias (5,)", "for 5 classes, the network"],
        ),
        (nn.ParameterDict({"weight": torch.ones(4, 2), "bias": torch.ones(4), "w": torch.ones(1)}), ["unknown 'w'"]),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, suffix, stored, named):
    model, path = nn.Linear(2, 4), tmp_path / f"w{suffix}"
    before = bits(model.state_dict())
    message = refusal("bad-shape", weights.load_weights, model, save_as(stored, path))
    assert message.startswith(f"{path} does not fit Linear: ")
    assert all(words in message for words in named)
    assert bits(model.state_dict()) == before


@pytest.mark.parametrize(
    "obj",
    [
        [torch.ones(1)],
        torch.ones(2, 2),
        5,
        None,
        {"weight": 1.0},
    ],
)
def test_a_torch_file_that_is_no_state_dict_is_refused(tmp_path, obj):
    message = refusal("unreadable", weights.load_weights, nn.Linear(2, 4), save(obj, tmp_path / "w.pt"))
    assert str(tmp_path / "w.pt") in message
    assert "plain state dict" in message


@pytest.mark.parametrize("content", NOT_TORCH)
@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_of_another_kind_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert str(path) in refusal("unreadable", weights.load_weights, nn.Linear(2, 4), path)


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = save_as(nn.Linear(8, 8), tmp_path / f"w{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert str(path) in refusal("unreadable", weights.load_weights, nn.Linear(8, 8), path)


# ---- nothing in a file is run


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("hidden", ["whole", "value", "key", "last"])
def test_a_pickle_with_code_is_refused_and_runs_nothing(tmp_path, zipped, hidden):
    made, model = tmp_path / "made", nn.Linear(2, 2)
    trap = Trap(made)
    state = dict(model.state_dict())
    evil = {"whole": trap, "value": state | {"weight": trap}, "key": state | {trap: 1}, "last": state | {"z": [trap]}}
    path = save(evil[hidden], tmp_path / "w.pt", zipped)
    torch.load(path, weights_only=False)  # the trap works where it is allowed to
    made.rmdir()
    assert "holds more than tensors" in refusal("unsafe", weights.load_weights, model, path)
    message = refusal("unreadable", files.load_state, path)
    assert "cannot be read as tensors" in message
    assert "weights_only" not in message  # torch's own advice is to switch the protection off
    assert not made.exists()


def test_a_bare_pickle_with_code_is_refused_and_runs_nothing(tmp_path):
    path, made = tmp_path / "w.pth", tmp_path / "made"
    path.write_bytes(pickle.dumps(Trap(made), protocol=2))
    refusal("unsafe", weights.load_weights, nn.Linear(2, 2), path)
    refusal("unreadable", files.load_state, path)
    assert not made.exists()


# ---- training state


def test_state_comes_back_bit_for_bit(tmp_path):
    model = small_net(dtype=torch.float32, norm=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1 / 3)
    model(torch.linspace(0, 1, 180).reshape(5, 1, 6, 6)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 3])
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "history": [{"epoch": 1, "loss": 0.1 + 0.2, "selected": True, "note": "ℓ∞", "none": None}],
    }
    files.save_state(state, tmp_path / "state.pt")
    again = files.load_state(tmp_path / "state.pt")
    assert again.keys() == state.keys()
    assert bits(again["model"]) == bits(state["model"])
    assert (again["history"], again["schedule"]) == (state["history"], state["schedule"])
    assert again["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    for number, moments in state["optimizer"]["state"].items():
        assert bits(again["optimizer"]["state"][number]) == bits(moments)


@pytest.mark.parametrize("obj", [[("a", 1)], torch.ones(3, 2), 5, None, "text"])
def test_a_state_of_another_type_is_refused(tmp_path, obj):
    message = refusal("unreadable", files.load_state, save(obj, tmp_path / "state.pt"))
    assert f"state.pt holds a {type(obj).__name__}; a training state is needed; --overwrite" in message


@pytest.mark.parametrize("content", NOT_TORCH)
def test_a_file_that_is_no_state_is_refused(tmp_path, content):
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    message = refusal("unreadable", files.load_state, path)
    assert message.startswith(f"{path} cannot be read as tensors (")
    assert message.endswith("; a training state is needed; --overwrite starts the run anew")


def test_a_truncated_or_missing_state_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    assert "No such file" in refusal("unreadable", files.load_state, path)
    files.save_state({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert str(path) in refusal("unreadable", files.load_state, path)


# ---- whole or not at all


def test_write_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "file.txt"
    files.write(path, "ℓ∞ first\n")
    assert path.read_bytes() == "ℓ∞ first\n".encode()
    files.write(path, b"\x00second")
    assert path.read_bytes() == b"\x00second"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "chmod"), (Path, "replace")])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, owner, name, error):
    def fail(*_):
        raise error

    path, model = tmp_path / "w.safetensors", nn.Linear(2, 2)
    files.write(path, b"old")
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(type(error)):
        weights.save_weights(model, path)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_no_new_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.save_state({"a": 1}, tmp_path / "state.pt")
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_synced_before_the_name_points_to_them(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append(self.read_bytes()), replace(self, to))[1])
    files.write(tmp_path / "file", b"whole")
    assert order == ["sync", b"whole"]
