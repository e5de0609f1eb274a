"""NumPy archives: what is read, in which form, and what is refused by name."""

import zipfile

import numpy as np
import pytest
import torch

from atent_ext.core.errors import BadInput
from atent_ext.core.layouts import layout
from atent_ext.data import datasets


def refused(path, *words, **options):
    """The code and the field of the error that the archive raises, which names the file and says these words."""
    with pytest.raises(BadInput) as error:
        datasets.load(f"npz:{path}", **options)
    for word in (str(path), *words):
        assert word in str(error.value)
    return error.value.code, error.value.field


def arrays(classes=3, train=12, test=6):
    """Image i is the constant i, of class i mod `classes`."""

    def part(count):
        labels = np.arange(count) % classes
        return np.arange(count, dtype=np.uint8).repeat(2 * 4 * 5).reshape(count, 2, 4, 5), labels

    return dict(zip(("x_train", "y_train", "x_test", "y_test"), (*part(train), *part(test)), strict=True))


@pytest.mark.parametrize("save_arrays", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("labels", [np.uint8, np.int64, np.uint64, ">i4"])
def test_npz_keeps_pixels_order_and_labels(tmp_path, save_arrays, labels):
    content = arrays()
    content["y_train"], content["y_test"] = content["y_train"].astype(labels), content["y_test"].astype(labels)
    content["x_test"] = np.asfortranarray(content["x_test"])
    save_arrays(tmp_path / "mine.npz", **content)
    loaded = datasets.load(f"npz:{tmp_path}/mine.npz")
    assert loaded.name == f"npz:{tmp_path}/mine.npz"
    assert loaded.classes == ("0", "1", "2")
    assert loaded.note == "arrays mine.npz, 12 training and 6 test images"
    for split, count in ((loaded.train, 12), (loaded.test, 6)):
        expected = torch.arange(count, dtype=torch.float32).div(255).reshape(-1, 1, 1, 1).expand(-1, 2, 4, 5)
        assert torch.equal(split.images, expected)
        assert split.images.is_contiguous()
        assert split.labels.dtype == torch.int64
        assert split.labels.tolist() == [i % 3 for i in range(count)]


def test_npz_counts_a_class_that_only_the_test_split_has(tmp_path):
    np.savez(tmp_path / "mine.npz", **(arrays() | {"y_test": np.array([0, 1, 2, 3, 0, 4])}))
    assert datasets.load(f"npz:{tmp_path}/mine.npz").classes == tuple("01234")


def test_npz_may_be_relative_to_the_current_folder_or_the_home(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", **arrays())
    monkeypatch.chdir(tmp_path)
    assert len(datasets.load("npz:mine.npz", "/nowhere").train) == 12
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    np.savez(tmp_path / "home" / "yours.npz", **arrays())
    assert len(datasets.load("npz:~/yours.npz").test) == 6


# ---- one data set in many forms


def pictures(classes=3):
    """12 training and 6 test images of 3 channels, 6×5 pixels, values 0-255, and their labels."""
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (count, 3, 6, 5), dtype=np.uint8) for count in (12, 6)]
    return images, [np.arange(count) % classes for count in (12, 6)]


def last(x):
    return x.transpose(0, 2, 3, 1)


def hot(y, kind):
    return np.eye(3)[y].astype(kind)


IMAGES = {
    "(N, H, W, C)": (last, "(N, H, W, C), 6×5 pixels of 3 channels, read as (N, C, H, W)"),
    "floats of 0-1": (lambda x: x.astype(np.float32) / np.float32(255), None),
    "doubles of 0-1": (lambda x: x / 255, None),
    "floats of 0-255": (lambda x: x.astype(np.float16), "floats of 0-255, divided by 255"),
    "64 bits": (lambda x: x.astype(">i8"), None),
    "all at once": (lambda x: last(x).astype(np.float64), "floats of 0-255, divided by 255"),
}
LABELS = {
    "one-hot": (lambda y: hot(y, np.uint8), "one-hot labels of 3 classes"),
    "one-hot floats": (lambda y: hot(y, np.float32), "one-hot labels of 3 classes"),
    "one-hot bits": (lambda y: hot(y, bool), "one-hot labels of 3 classes"),
    "(N, 1)": (lambda y: y[:, None].astype(np.uint8), None),
}


@pytest.mark.parametrize("form", [*IMAGES, *LABELS])
def test_every_form_of_the_same_arrays_is_the_same_data_set(tmp_path, form):
    change, note = (IMAGES | LABELS)[form]
    images, labels = pictures()
    x, y = (list(map(change, part)) if form in own else part for part, own in ((images, IMAGES), (labels, LABELS)))
    np.savez(tmp_path / "mine.npz", x_train=x[0], y_train=y[0], x_test=x[1], y_test=y[1])
    loaded = datasets.load(f"npz:{tmp_path}/mine.npz")
    for split, pixels, numbers in zip((loaded.train, loaded.test), images, labels, strict=True):
        assert torch.equal(split.images, torch.from_numpy(pixels).float().div(255))
        assert (split.images.dtype, split.images.is_contiguous()) == (torch.float32, True)
        assert split.labels.tolist() == numbers.tolist()
    assert (loaded.classes, loaded.counted) == (("0", "1", "2"), "one-hot" not in form)
    assert loaded.note.startswith("arrays mine.npz, 12 training and 6 test images")
    assert (note or "images") in loaded.note  # what was converted is said


def test_gray_pictures_and_the_names_of_another_collection(tmp_path):
    images, labels = pictures()
    parts = zip(("train", "test", "val"), (*images, images[0]), (*labels, labels[0]), strict=True)
    members = {f"{part}_{kind}": x for part, *pair in parts for kind, x in zip(("images", "labels"), pair, strict=True)}
    np.savez(tmp_path / "m.npz", **{name: x[:, 0] if x.ndim == 4 else x for name, x in members.items()})
    loaded = datasets.load(f"npz:{tmp_path}/m.npz")
    assert torch.equal(loaded.train.images, torch.from_numpy(images[0][:, :1]).float().div(255))
    assert loaded.test.labels.tolist() == labels[1].tolist()
    assert "(N, H, W) read as one channel" in loaded.note


@pytest.mark.parametrize("names", [("x_test", "y_test"), ("images", "labels")])
def test_arrays_for_tests_alone(tmp_path, names):
    images, labels = pictures()
    np.savez(tmp_path / "t.npz", **dict(zip(names, (images[1], labels[1]), strict=True)))
    loaded = datasets.load(f"npz:{tmp_path}/t.npz")
    assert torch.equal(loaded.test.images, torch.from_numpy(images[1]).float().div(255))
    assert (len(loaded.train), loaded.train.images.shape, loaded.note) == (
        0,
        (0, 3, 6, 5),
        "arrays t.npz, 6 test images",
    )
    with pytest.raises(BadInput) as error:
        datasets.hold_out(loaded.train, 2, seed=0)
    assert (error.value.code, error.value.field) == ("missing", "train")


def test_the_number_of_classes_is_counted_stated_or_that_of_one_hot_labels(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays())  # labels 0, 1, 2
    assert (len(datasets.load(f"npz:{path}").classes), datasets.load(f"npz:{path}").counted) == (3, True)
    stated = datasets.load(f"npz:{path}", classes=10)
    assert (stated.classes, stated.counted) == (tuple("0123456789"), False)
    assert refused(path, "labels span [0, 2]; of 2 classes they are 0 to 1", classes=2) == ("bad-value", "labels")
    np.savez(path, **(arrays() | {"y_train": arrays()["y_train"] + 1, "y_test": arrays()["y_test"] + 1}))
    assert refused(path, "span [1, 3]", "number classes from 0", classes=3) == ("bad-value", "labels")
    np.savez(path, **(arrays() | {"y_train": np.eye(5)[arrays()["y_train"]]}))  # of which the last two have no image
    assert len(datasets.load(f"npz:{path}").classes) == 5


# ---- what is refused


def stack(*shape, kind=np.uint8):
    return np.full((12, *shape), 7, kind)


@pytest.mark.parametrize(
    ("changes", "code", "field", "words"),
    [
        ({"x_train": stack(5, 40)[:, 0]}, "bad-shape", "images", "(40,) in training and"),
        ({"x_train": np.array([["a"]] * 12)}, "bad-type", "images", "x_train is <U1"),
        ({"x_test": np.zeros((0, 2, 4, 5), np.uint8)}, "bad-shape", "images", "x_test is uint8 (0, 2, 4, 5)"),
        ({"x_test": stack(2, 7, 5)[:6]}, "bad-shape", "images", "(2, 4, 5) in training and (2, 7, 5) in test"),
        ({"x_train": stack(3, 6, 4)}, "bad-shape", "images", "either (N, C, H, W), 6×4 pixels of 3 channels, or (N, H"),
        ({"x_train": stack(32, 32, 32)}, "bad-shape", "images", "either (N, C, H, W), 32×32 pixels of 32 channels"),
        ({"x_train": stack(2, 4, 5, kind=np.int16) - 8}, "bad-value", "images", "spans [-1, -1] as int16"),
        ({"x_train": stack(2, 4, 5, kind=np.uint16) * 100}, "bad-value", "images", "spans [700, 700] as uint16"),
        ({"x_train": stack(2, 4, 5, kind=np.float32) / -7}, "bad-value", "images", "look normalised"),
        ({"x_train": stack(2, 4, 5) / 5}, "bad-value", "images", "spans [1.4, 1.4] as float64"),
        ({"x_train": stack(2, 4, 5) / 0.01}, "bad-value", "images", "spans [700, 700]"),
        ({"x_train": stack(2, 4, 5) * np.nan}, "bad-value", "images", "spans [nan, nan]"),
        (
            {"x_train": stack(2, 4, 5) / 1, "x_test": stack(2, 4, 5)[:6] / 9},
            "conflict",
            "images",
            "give both one range",
        ),
        ({"x_train": stack(2, 4, 5) // 7, "x_test": stack(2, 4, 5)[:6] // 7}, "bad-value", "images", "0 and 1 only"),
        ({"y_train": np.zeros(11, np.int64)}, "bad-shape", "labels", "int64 (11,)"),
        ({"y_train": np.zeros(0, np.int64)}, "bad-shape", "labels", "int64 (0,)"),
        ({"y_train": np.ones((12, 3), np.int64)}, "bad-shape", "labels", "one-hot rows of 0 and 1"),
        ({"y_train": np.full((12, 2), 0.5)}, "bad-type", "labels", "float64 (12, 2)"),
        ({"y_test": np.full(6, 0.5)}, "bad-type", "labels", "y_test are float64"),
        ({"y_test": np.ones(6, bool)}, "bad-type", "labels", "y_test are bool"),
        ({"y_test": np.array([0, 1, 2, 0, 1, -1])}, "bad-value", "labels", "integers >= 0"),
        ({"y_test": np.array([0, 1, 2, 0, 1, 2**64 - 1], np.uint64)}, "bad-value", "labels", "uint64"),
        ({"y_test": np.array([0, 1, 2, 0, 1, 10**12])}, "bad-value", "labels", "reach 1000000000000 with 18 images"),
        ({"y_train": np.array([{}] * 12)}, "unreadable", "name", "of x_train, y_train, x_test, y_test: Object arrays"),
        ({"y_train": None}, "unreadable", "name", "there is no y_train in it; it holds x_train, x_test, y_test"),
        ({"x_test": None, "y_test": None}, "unreadable", "name", "x_test and y_test are needed"),
    ],
)
def test_npz_names_the_file_and_what_is_wrong(tmp_path, changes, code, field, words):
    path = tmp_path / "mine.npz"
    np.savez(path, **{name: array for name, array in (arrays() | changes).items() if array is not None})
    assert refused(path, words) == (code, field)


@pytest.mark.parametrize(
    ("shapes", "order"),
    [
        (((3, 32, 32), (1, 28, 28), (2, 4, 5), (3, 224, 160), (1, 2, 2), (3, 4, 4), (13, 64, 64), (1, 1, 1)), "CHW"),
        (((32, 32, 3), (28, 28, 1), (224, 160, 3), (64, 64, 13)), "HWC"),
        (((32, 32, 32), (3, 32, 4), (4, 4, 3), (1, 1, 3), (5, 4, 4), (4, 4, 4), (13, 48, 64)), None),
    ],
)
def test_the_layout_follows_from_few_channels_and_square_pictures(shapes, order):
    assert [layout(shape) for shape in shapes] == [order] * len(shapes)


def single_array(path):
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


def broken_inside(path):
    np.savez_compressed(path, **arrays())
    content = bytearray(path.read_bytes())
    start = content.index(b"x_train.npy") + len("x_train.npy")
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)


def raw_member(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in arrays():
            archive.writestr(name, b"no header")


def bad_header(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in arrays():
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00\x06\x00{'a'" + b"\n")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<!DOCTYPE html><html>404</html>"),
        single_array,
        broken_inside,
        raw_member,
        bad_header,
    ],
    ids=["nothing", "folder", "empty", "web page", "single array", "broken inside", "raw member", "bad header"],
)
def test_a_file_that_is_no_npz_is_named(tmp_path, make):
    make(tmp_path / "mine.npz")
    path = tmp_path / "mine.npz"
    code = "unreadable" if path.exists() else "missing"
    assert refused(path, "is not a NumPy archive") == (code, "name")
