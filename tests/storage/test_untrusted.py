"""The codes and fields of errors about untrusted files; tests/submissions/test_folder.py tests their messages."""

import io
import os
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from atent_ext.core.errors import BadInput
from atent_ext.models import weights
from atent_ext.storage import files, untrusted


def reason(call, *arguments, **options):
    with pytest.raises(BadInput) as error:
        call(*arguments, **options)
    return error.value.code, error.value.field


def saved(obj, zipped=True):
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def archive(compression=zipfile.ZIP_STORED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        for name, content in members.items():
            target.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return buffer.getvalue()


# ---- folders and files


def test_a_folder_with_other_things_than_files_is_unsafe(tmp_path):
    for name, make in (
        ("link", lambda path: path.symlink_to(tmp_path)),
        ("pipe", os.mkfifo),
        ("a\nb", Path.touch),
    ):
        folder = tmp_path / f"with {name!r}"
        folder.mkdir()
        make(folder / name)
        assert reason(untrusted.files, folder) == ("unsafe", "folder")


def test_a_missing_a_deep_and_a_full_folder(tmp_path):
    assert reason(untrusted.files, tmp_path / "nowhere") == ("missing", "folder")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert reason(untrusted.files, tmp_path) == ("too-large", "folder")
    assert untrusted.files(tmp_path, depth=3) == []
    for name in "cde":
        (tmp_path / name).touch()
    assert reason(untrusted.files, tmp_path, most=3, depth=3) == ("too-large", "folder")
    assert [path.name for path in untrusted.files(tmp_path, most=5, depth=3)] == ["c", "d", "e"]


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert untrusted.read(tmp_path / "file", 5) == b"12345"
    assert reason(untrusted.read, tmp_path / "file", 4) == ("too-large", "path")
    assert reason(untrusted.read, tmp_path / "link", 5) == ("unsafe", "path")
    assert reason(untrusted.read, tmp_path, 5) == ("unsafe", "path")
    assert reason(untrusted.read, tmp_path / "nowhere", 5) == ("missing", "path")
    assert reason(untrusted.read, tmp_path / "file" / "below", 5) == ("unreadable", "path")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"a: [", "unreadable"),
        (b"\xff", "unreadable"),
        (b"a: &x 1\nb: *x", "unsafe"),
        (b"!!python/object/apply:os.getcwd []", "unsafe"),
        (b"[" * 21 + b"]" * 21, "too-large"),
    ],
)
def test_yaml_that_is_refused(content, code):
    assert reason(untrusted.plain_yaml, content, Path("card.yaml")) == (code, "source")


# ---- weights


def evil():
    return saved({"weight": os.getcwd})


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("w.pt", b"", "unreadable"),
        ("w.pt", b"<html>", "unreadable"),
        ("w.pt", b"hello", "unreadable"),
        ("w.pt", b"\x80\x02}.", "unreadable"),
        ("w.pt", saved(torch.ones(1)), "unreadable"),
        ("w.pt", saved({"w": torch.ones(99)})[:-99], "unreadable"),
        ("w.pt", saved({"w": torch.ones(99)}, zipped=False)[:-99], "unreadable"),
        ("w.pt", archive(zipfile.ZIP_DEFLATED, m__data_pkl=b"x" * 999), "unreadable"),
        ("w.pt", archive(m__data_pkl=b"x" * (4 * 2**20 + 1)), "too-large"),
        ("w.pt", archive(m__constants_pkl=b"x"), "unsafe"),
        ("w.pt", evil(), "unsafe"),
        ("w.safetensors", b"hello", "unreadable"),
        ("w.safetensors", safetensors.torch.save({"w": torch.ones(9)})[:-1], "unreadable"),
        ("w.safetensors", (10**10).to_bytes(8, "little") + b"{}", "unreadable"),
    ],
)
def test_weights_that_are_refused(name, content, code):
    assert reason(files.parse_weights, content, Path(name)) == (code, "path")


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"weight": torch.ones(3, 2)}, "bad-shape"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(4)}, "bad-shape"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(3), "more": torch.ones(1)}, "bad-shape"),
        ({"weight": torch.ones(3, 2), "bias": torch.tensor([0.0, torch.nan, 0.0])}, "bad-value"),
    ],
)
def test_tensors_that_do_not_fit_leave_the_network_unchanged(state, code):
    network = nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert reason(weights.fill, network, saved(state), Path("w.pt"), []) == (code, "path")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_checkpoint_without_tensors_is_unreadable():
    content = saved({"model": {"epoch": 1}})
    assert reason(weights.fill, nn.Linear(2, 3), content, Path("w.pt"), []) == ("unreadable", "path")


def test_a_missing_checkpoint(tmp_path):
    assert reason(files.tensors, tmp_path / "w.pt") == ("missing", "path")
