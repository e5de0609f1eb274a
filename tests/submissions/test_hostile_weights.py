"""Files that are no weights, or are made to harm: a named error, and nothing in them is ever run."""

import os
import pickle
import struct
import tarfile
import time
import zipfile
from collections import Counter, OrderedDict
from dataclasses import dataclass
from io import BytesIO

import pytest
import safetensors.torch
import torch
from strangers import AGAIN, SAVE, digits_cnn, refusal, same_weights, saved, submission

from atent_ext.submissions import folder as submission_folder

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
    assert f"(ValueError: collections.{kind} of something that is not a mapping)" in refusal(
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
    assert opened.notes == (
        "the weights under 'net' are read",
        "left aside: 'optimizer', 'schedule', 'where', 'best'",
    )


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
        ([("storage", FLOAT, "0", "cpu", -4)], "ValueError: a reference to a storage that torch does not write"),
        ([("storage", FLOAT, 0, "cpu", 4)], "ValueError: a reference to a storage that torch does not write"),
        ([("storage", FLOAT, "0", "cpu", "4")], "ValueError: a reference to a storage that torch does not write"),
        ([("module", FLOAT, "0", "cpu", 4)], "ValueError: a reference to a storage that torch does not write"),
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
