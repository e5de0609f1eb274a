"""Data in files: parts are read as they are needed, are those of the whole, and every form gives the same flags."""

import importlib.util
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import atent, refused
from PIL import Image
from torch import nn

from atent_ext.core.around import Resizing
from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.core.schema import Threat
from atent_ext.data import datasets, image_files, imagenet
from atent_ext.data.resizing import resized
from atent_ext.data.splits import DataSet, Split, Stored, digest
from atent_ext.evaluation import scoring
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.evaluation.report import About
from atent_ext.subjects import base
from atent_ext.training import recipes, splits

COUNT, CLASSES = 70, ("ant", "bee", "cat")


def reason(call, *arguments, match=None, **options):
    with pytest.raises(BadInput, match=match) as error:
        call(*arguments, **options)
    return error.value.code, error.value.field


def pixels():
    """Images (N, H, W, C) of 0-255 and labels that go round."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8), np.arange(COUNT) % len(CLASSES)


def folder(path):
    for place, (image, label) in enumerate(zip(*pixels(), strict=True)):
        (path / "val" / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / "val" / CLASSES[label] / f"{place:03}.png")
    return f"folder:{path}"


def archive(path, save=np.savez):
    images, labels = pixels()
    save(path / "a.npz", x_test=images, y_test=labels)
    return f"npz:{path}/a.npz"


def channels_first(path):
    images, labels = pixels()
    np.savez(path / "a.npz", x_test=images.transpose(0, 3, 1, 2).astype(np.float32), y_test=labels)
    return f"npz:{path}/a.npz"


def files(path):
    for name, array in zip(("x_test", "y_test"), pixels(), strict=True):
        np.save(path / f"{name}.npy", array)
    return f"npy:{path}"


class Column(list):
    """A column of the library `datasets`, which is read as it is sliced."""


class EncodedImage:
    """The library's feature Image, whose rows are {"bytes": ..., "path": ...}."""

    def __init__(self, decode=True):
        self.decode = decode


class Array3D:
    """The library's feature of arrays."""


class ClassLabel:
    """The library's feature of named classes."""

    def __init__(self, names):
        self.names = names


class Table:
    """A data set of the library `datasets`, as far as it is used here."""

    def __init__(self, images, labels, names=CLASSES, feature=None):
        self.images, self.labels = images, labels
        self.features = {"image": feature or Array3D(), "label": ClassLabel(names), "other": EncodedImage()}

    def select_columns(self, names):
        return self._with({name: self.features[name] for name in names})

    def cast_column(self, name, feature):
        return self._with(self.features | {name: feature})

    def _with(self, features):
        table = Table(self.images, self.labels)
        table.features = features
        return table

    def __getitem__(self, key):
        if not isinstance(key, str):
            assert not any(getattr(one, "decode", False) for one in self.features.values()), "it opens what rows name"
        if isinstance(key, str):
            return Column(self.labels)
        if isinstance(key, int):
            return {"image": self.images[key], "label": self.labels[key]}
        return {"image": list(self.images[key]), "label": list(self.labels[key])}


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """A stand-in for the library, which holds the images as files of PNG."""
    images, labels = pixels()
    rows = [encoded(Image.fromarray(image)) for image in images]
    tables = {"validation": Table(rows, labels.tolist(), feature=EncodedImage())}
    known = SimpleNamespace(load_from_disk=lambda path: tables, Image=EncodedImage)
    monkeypatch.setitem(sys.modules, "datasets", known)
    return tables


def encoded(image, **options):
    """A row of the feature Image."""
    buffer = io.BytesIO()
    image.save(buffer, "png", **options)
    return {"bytes": buffer.getvalue(), "path": "a.png"}


SOURCES = {
    "folder": folder,
    "npz": archive,
    "compressed": lambda path: archive(path, np.savez_compressed),
    "floats": channels_first,
    "npy": files,
    "hf-dataset": lambda path: f"hf-dataset:{path}",
}


def expected():
    images, labels = pixels()
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255), torch.from_numpy(labels)


@pytest.mark.parametrize("source", SOURCES)
def test_parts_are_read_when_they_are_asked_for_and_are_those_of_the_whole(tmp_path, source):
    test, (images, labels) = datasets.load(SOURCES[source](tmp_path)).test, expected()
    assert (type(test), len(test), test.shape, "images" in vars(test)) == (Stored, COUNT, (3, 6, 5), False)
    for part in (slice(3, 9), slice(60, None), slice(0, 2), slice(5, 5), slice(None, None, 9), slice(-3, None)):
        assert torch.equal(test[part].images, images[part])
        assert torch.equal(test[part].labels, labels[part])
    assert torch.equal(test.take(7)[5:20].images, images[5:7])
    rows = torch.randperm(COUNT)[:30]
    assert torch.equal(test.pick(rows)[2:9].images, images[rows[2:9]])
    assert torch.equal(test.pick(rows).labels, labels[rows])
    assert (len(test.take(7)), test[:1].images.is_contiguous()) == (7, True)
    assert datasets.digests(test, labels) == (digest(images, labels), digest(labels, images, labels))
    assert "images" not in vars(test)
    assert torch.equal(test.images, images)
    assert test.images is test.images


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(90, 3)).eval()


def test_scoring_reads_chunk_by_chunk_with_the_flags_and_digests_of_tensors(tmp_path):
    sizes = []

    def read(positions):
        sizes.append(len(positions))
        return images[positions.start : positions.stop]

    def score(split, path=None):
        about = About(name="m", model="m", data="d")
        subject = scoring.Subject(linear(), split, Threat(norm="Linf", eps=0.1), about)
        return scoring.score(subject, load_protocol("clean"), n=65, chunk=10, batch_size=4, path=path)

    images, labels = expected()
    whole, parts = score(Split(images, labels)), score(Stored(read, labels, (3, 6, 5)), tmp_path / "r.json")
    assert [result.flags for result in parts.results] == [result.flags for result in whole.results]
    assert (parts.data_sha256, parts.content_sha256) == (whole.data_sha256, whole.content_sha256)
    # digests, the images that the model is prepared on, and 7 chunks
    assert sizes == [64, 1, 4, *[10] * 6, 5]
    assert score(Split(images, labels), tmp_path / "r.json") == parts


@pytest.mark.parametrize("source", ["npz", "compressed", "npy"])
def test_a_file_that_is_cut_off_later_is_named(tmp_path, source):
    name = SOURCES[source](tmp_path)
    test = datasets.load(name).test
    path = next(tmp_path.glob("[ax]*"))
    path.write_bytes(path.read_bytes()[:300])
    assert reason(test.__getitem__, slice(60, 70), match=str(tmp_path)) == ("unreadable", "name")


@pytest.mark.parametrize(
    ("x", "y", "code"),
    [
        (np.zeros((4, 2, 2, 3), np.uint8), np.arange(4), "bad-value"),  # 0 and 1 only: of 0-255, or of 0-1?
        (np.full((4, 3, 6, 6), -2.0), np.arange(4), "bad-value"),
        (np.full((4, 3, 6, 6), 0.5), np.arange(3), "bad-shape"),
        (np.full((4, 3, 6, 6), 0.5), np.array(["a"] * 4), "bad-type"),
        (np.array(0.5), np.arange(1), "unreadable"),
        (np.full((4, 3, 6, 6), None), np.arange(4), "unreadable"),
    ],
)
def test_npy_files_of_another_form_are_refused_as_archives_are(tmp_path, x, y, code):
    np.save(tmp_path / "x_test.npy", x, allow_pickle=True)
    np.save(tmp_path / "y_test.npy", y)
    assert reason(datasets.load, f"npy:{tmp_path}", match=str(tmp_path))[0] == code


def test_npy_declares_no_more_than_the_file_holds(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 3, 8, 8)})
    (tmp_path / "x_test.npy").write_bytes(header.getvalue() + b"\1" * 100)
    np.save(tmp_path / "y_test.npy", np.arange(4))
    assert reason(datasets.load, f"npy:{tmp_path}", match="100 are there") == ("unreadable", "name")
    assert reason(datasets.load, f"npy:{tmp_path}/y_test.npy", match="npz:") == ("unreadable", "name")


# ---- which label is which class


def numbers(path, count=11):
    for number in range(count):
        (path / "test" / str(number)).mkdir(parents=True)
        Image.new("RGB", (4, 4), (number,) * 3).save(path / "test" / str(number) / "a.png")
    return f"folder:{path}"


def test_classes_that_are_numbers_are_not_silently_sorted_as_texts(tmp_path):
    name = numbers(tmp_path)
    assert reason(datasets.load, name, match=f"10 is label 2; .*{tmp_path}/classes.txt") == ("conflict", "name")
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(12))) + "\n")
    loaded = datasets.load(name)
    assert loaded.classes == tuple(map(str, range(12)))
    assert (loaded.test.images[:, 0, 0, 0] * 255).round().tolist() == loaded.test.labels.tolist()
    assert "classes as in classes.txt" in loaded.note
    (tmp_path / "classes.txt").write_text("0\n1\n")
    assert reason(datasets.load, name, match="lacks 10, 2, 3") == ("conflict", "name")
    (tmp_path / "classes.txt").write_text("\n".join(map(str, [*range(11), 0])))
    assert reason(datasets.load, name, match="twice") == ("conflict", "name")


def test_ten_numbers_or_fewer_need_no_list(tmp_path):
    assert datasets.load(numbers(tmp_path, 10)).classes == tuple("0123456789")


def test_a_network_of_other_classes_than_the_folder_is_refused(tmp_path):
    name = folder(tmp_path / "data")
    code = tmp_path / "net.py"
    code.write_text("from torch import nn\ndef make(out=3):\n return nn.Sequential(nn.Flatten(), nn.Linear(90, out))\n")
    command = ["eval", f"{code}:make", "--dataset", name, "--eps", 0.1, "--protocol", "clean"]
    refused(atent(*command, "--model-arg", "out=1000"), "1000 logits", "3 classes", "classes.txt")
    assert atent(*command, "--out", tmp_path / "r.json").returncode == 0
    assert json.loads((tmp_path / "r.json").read_text())["n"] == COUNT
    counted = datasets.load(archive(tmp_path))  # whose labels may lack classes
    assert base.check_classes(nn.Sequential(nn.Flatten(), nn.Linear(90, 9)), counted) is None


# ---- ImageNet


def test_imagenet_is_the_listed_images_as_robustbench_prepares_them(tmp_path, monkeypatch):
    from torchvision import transforms

    files = ["n02/b.JPEG", "n01/a.JPEG"]
    draw = np.random.default_rng(0)
    for file, size in zip([*files, "n01/other.JPEG"], ((300, 280), (270, 400), (20, 20)), strict=True):
        path = tmp_path / "imagenet/val" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    monkeypatch.setattr(imagenet, "_lists", lambda: (files, {"n01": 0, "n02": 1}))
    loaded = datasets.load("imagenet", tmp_path)
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    for place, file in enumerate(files):
        image = Image.open(tmp_path / "imagenet/val" / file).convert("RGB")
        assert torch.equal(loaded.test[place : place + 1].images[0], theirs(image))
    assert (loaded.test.labels.tolist(), loaded.classes, len(loaded.train)) == ([1, 0], ("n01", "n02"), 0)
    (tmp_path / "imagenet/val" / files[1]).unlink()
    assert reason(datasets.load, "imagenet", tmp_path, match="n01/a.JPEG is missing") == ("missing", "root")


def test_imagenet_has_the_lists_of_the_installed_package():
    if importlib.util.find_spec("robustbench") is None:
        pytest.skip("needs robustbench")
    files, label_of = imagenet._lists()
    assert (len(set(files)), len(label_of), sorted(label_of.values())) == (5000, 1000, list(range(1000)))
    assert list(label_of) == sorted(label_of)
    assert {file.partition("/")[0] for file in files} <= set(label_of)


def test_imagenet_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "val").mkdir()
    monkeypatch.setattr(imagenet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="robustbench"):
        datasets.load("imagenet", tmp_path)


# ---- the library datasets


def test_a_data_set_of_the_library_keeps_order_and_names(tmp_path, library):
    loaded = datasets.load(f"hf-dataset:{tmp_path}")
    assert (loaded.classes, loaded.counted, len(loaded.train)) == (CLASSES, False, 0)
    assert loaded.note == f"data set {tmp_path.name}, part validation, column image, for tests only"
    images, labels = pixels()
    library["train"] = Table([image[:, :, 0] for image in images], labels.tolist())
    assert datasets.load(f"hf-dataset:{tmp_path}").train.shape == (1, 6, 5)
    library["train"].features["label"] = ClassLabel(("cat", "bee", "ant"))
    assert reason(datasets.load, f"hf-dataset:{tmp_path}", match="in their order") == ("conflict", "labels")


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (lambda table: table.features.pop("label"), "missing", "labels"),
        (lambda table: table.labels.__setitem__(0, 0.5), "bad-type", "labels"),
        (lambda table: table.labels.__setitem__(0, 3), "bad-value", "labels"),
        (lambda table: table.images.__setitem__(0, np.ones((6, 5, 3))), "bad-value", "images"),
        (lambda table: table.images.__setitem__(0, {"bytes": b"%!PS-Adobe", "path": None}), "unreadable", "images"),
        (lambda table: table.images.__setitem__(0, {"bytes": None, "path": None}), "missing", "images"),
        (lambda table: table.features.update(image=[EncodedImage()]), "unsafe", "images"),
        (lambda table: table.features.update(label=EncodedImage()), "unsafe", "labels"),
    ],
)
def test_what_a_data_set_of_the_library_lacks_is_named(tmp_path, library, change, code, field):
    change(library["validation"])
    assert reason(datasets.load, f"hf-dataset:{tmp_path}") == (code, field)


def test_an_image_of_another_size_is_found_when_it_is_read(tmp_path, library):
    library["validation"].images[5] = encoded(Image.new("RGB", (9, 9)))
    test = datasets.load(f"hf-dataset:{tmp_path}").test
    assert len(test[:5].images) == 5
    assert reason(datasets.digests, test, match="9×9, but the first is 5×6") == ("bad-shape", "images")


def test_rows_may_name_files_below_the_data_set_only(tmp_path, library):
    place, images = tmp_path / "data", library["validation"].images
    place.mkdir()
    content = images[0]["bytes"]
    for path in (tmp_path / "secret.png", place / "own.png"):
        path.write_bytes(content)
    (place / "link.png").symlink_to(tmp_path / "secret.png")
    expected = datasets.load(f"hf-dataset:{place}").test.images[0]
    for path in ("own.png", str(place / "own.png")):
        images[0] = {"bytes": None, "path": path}
        assert torch.equal(datasets.load(f"hf-dataset:{place}").test.images[0], expected)
    outside = (
        tmp_path / "secret.png",
        "../secret.png",
        place / "link.png",
        "http://127.0.0.1:9/x.png",
        "none.png",
        "\0",
    )
    for path in outside:
        images[0] = {"bytes": None, "path": str(path)}
        assert reason(datasets.load, f"hf-dataset:{place}") == ("unsafe", "images"), path


def test_images_are_turned_as_their_files_say(tmp_path, library):
    exif = Image.Exif()
    exif[0x0112] = 6
    images, _ = pixels()
    library["validation"].images[:] = [encoded(Image.fromarray(image), exif=exif) for image in images]
    assert datasets.load(f"hf-dataset:{tmp_path}").test.shape == (3, 5, 6)


def test_the_library_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match="pip install datasets"):
        datasets.load(f"hf-dataset:{tmp_path}")
    assert reason(datasets.load, f"hf-dataset:{tmp_path}/nothing") == ("missing", "name")


def test_images_that_are_not_alike_are_refused_by_name(tmp_path):
    for name, size in (("a", (4, 4)), ("b", (4, 5))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    split = image_files.stored([f"{tmp_path}/a.png", f"{tmp_path}/b.png"], torch.tensor([0, 1]), (3, 4, 4))
    assert reason(datasets.digests, split, match=r"b\.png is 4×5, but the first image is 4×4") == (
        "bad-shape",
        "images",
    )


def test_a_folder_of_many_sizes_is_read_resized(tmp_path):
    draw, sizes = np.random.default_rng(0), [(12, 20), (30, 9), (16, 16), (7, 11)]
    raw = [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for place, image in enumerate(raw):
        (tmp_path / "val" / CLASSES[0]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "val" / CLASSES[0] / f"{place}.png")
    whole = datasets.load(f"folder:{tmp_path}")
    with pytest.raises(BadInput, match="--resize") as error:
        whole.test[:]
    assert (error.value.code, error.value.field) == ("bad-shape", "images")
    square = Resizing(size=8, crop=8)
    test = resized(whole, square).test
    assert test.shape == (3, 8, 8)
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in raw]
    expected = torch.cat([square.plan(one.shape[1:]).of(one) for one in tensors]).clamp(0, 1)
    assert torch.equal(test[:].images, expected)
    assert torch.equal(test.pick(torch.tensor([3, 1]))[:].images, expected[[3, 1]])
    with pytest.raises(BadInput) as error:
        resized(whole, Resizing(size=8)).test[:]
    assert (error.value.code, error.value.field) == ("bad-shape", "resize")


def test_training_on_some_images_reads_these_and_the_held_out_ones():
    images, labels = torch.rand(60, 1, 2, 2), torch.arange(60) % 10
    positions = []

    def read(rows):
        positions.extend(rows)
        return images[rows.start : rows.stop]

    recipe = recipes.load("digits-linf-sgd", ["examples=15", "validation.count=20"])
    split = Stored(read, labels, (1, 2, 2))
    chosen = splits.split(recipe, DataSet("own", tuple("abcdefghij"), split, split, "own"))
    assert len(positions) == len(set(positions)) == 35
    whole = splits.split(recipe, DataSet("own", tuple("abcdefghij"), Split(images, labels), split, "own"))
    assert torch.equal(chosen.rest.images, whole.rest.images)
    assert torch.equal(chosen.held_out.images, whole.held_out.images)
    assert chosen.digest() == whole.digest()


@pytest.mark.parametrize(("images", "labels"), [(2.0, 0), (0.5, 10)])
def test_training_refuses_images_and_labels_that_do_not_fit(images, labels):
    wrong = Split(torch.full((40, 1, 2, 2), images), torch.arange(40) % 10 + labels)
    with pytest.raises(BadInput) as error:
        splits.split(
            recipes.load("digits-linf-sgd", ["validation.count=20"]), DataSet("own", ("a",) * 10, wrong, wrong, "")
        )
    assert error.value.field == ("images" if images > 1 else "labels")
