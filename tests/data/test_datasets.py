import gzip
import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def mnist(data_root):
    return datasets.load("mnist", data_root)


@pytest.fixture
def no_home(tmp_path, monkeypatch):
    """No ATENT_DATA, and an empty home folder."""
    monkeypatch.delenv("ATENT_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def idx(values):
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


def fake_values():
    """The four official files: 20 training and 10 test images of 28×28, and their labels."""
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (20, 10)]
    labels = [np.arange(n, dtype=np.uint8) % 10 for n in (20, 10)]
    return dict(zip(IDX, [images[0], labels[0], images[1], labels[1]], strict=True))


def write_idx(root, folder="MNIST", packed=True):
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, values in fake_values().items():
        if packed:
            (raw / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (raw / name).write_bytes(idx(values))
    return raw


def reason(call, *arguments, match=None, **options):
    """The code and the field of the BadInput that a call raises, whose message matches."""
    with pytest.raises(BadInput, match=match) as error:
        call(*arguments, **options)
    return error.value.code, error.value.field


def tree(root):
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in Path(root).rglob("*")}


def numbered(per_class):
    """A split whose image i is the constant i, with `per_class[k]` examples of class k, classes interleaved."""
    labels = torch.tensor([k for k, count in enumerate(per_class) for _ in range(count)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    return datasets.Split(torch.arange(len(labels)).float().reshape(-1, 1, 1, 1), labels)


# ---- Split, hold_out, dataset


def test_take_gives_the_first_in_order():
    split = numbered([5, 5])
    assert len(split) == 10
    assert split.take(3).images.flatten().tolist() == [0, 1, 2]
    assert torch.equal(split.take(3).labels, split.labels[:3])
    assert len(split.take(10)) == 10
    assert split.take(None) is split


@pytest.mark.parametrize("n", [0, -1, True, 11])
def test_take_refuses_impossible_counts(n):
    match = "n is 11, but there are only 10 examples; ask for at most 10" if n == 11 else f"n is {n}"
    assert reason(numbered([5, 5]).take, n, match=match) == ("bad-value", "n")


def test_hold_out_is_stratified_disjoint_and_complete():
    split = numbered([60, 30, 10])
    rest, held_out = datasets.hold_out(split, 20, seed=3)
    assert held_out.labels.bincount().tolist() == [12, 6, 2]
    assert rest.labels.bincount().tolist() == [48, 24, 8]
    left, taken = rest.images.flatten().int().tolist(), held_out.images.flatten().int().tolist()
    assert sorted(left + taken) == list(range(100))
    assert left == sorted(left)
    assert taken == sorted(taken)
    assert torch.equal(held_out.labels, split.labels[taken])


def test_hold_out_depends_on_the_seed_alone():
    split = numbered([60, 30, 10])
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (datasets.hold_out(split, 20, seed)[1].images for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("count", [0, -5, 2, 98, 100, 1000])
def test_hold_out_refuses_an_impossible_count(count):
    call, split = datasets.hold_out, numbered([60, 30, 10])
    assert reason(call, split, count, seed=0, match=str(count)) == ("bad-value", "count")


def test_hold_out_refuses_a_class_of_one():
    split = numbered([10, 10, 1])
    assert reason(datasets.hold_out, split, 5, seed=0, match="hold out 5 of 21") == ("bad-value", "count")


# ---- names


def test_unknown_name_names_the_nearest():
    for name, match in (("mnst", "did you mean 'mnist'"), ("zzz", r"folder:PATH.*npz:FILE")):
        assert reason(datasets.load, name, match=match) == ("unknown-name", "data set")


@pytest.mark.parametrize("name", sorted(set(registry.DATASETS) - {"digits"}))
def test_missing_data_names_the_folder_and_both_remedies(name, tmp_path):
    with pytest.raises(BadInput) as error:
        datasets.load(name, tmp_path)
    assert (error.value.code, error.value.field) == ("missing", "root")
    message = str(error.value)
    assert name in message
    assert str(tmp_path) in message
    assert all(remedy in message for remedy in ("--data-root", "ATENT_DATA", "--download"))
    assert tree(tmp_path) == {}


def test_root_falls_back_to_the_environment_and_then_to_the_cache(tmp_path, monkeypatch, no_home):
    with pytest.raises(BadInput, match=str(no_home / ".cache/atent_ext")):
        datasets.load("mnist")
    assert not no_home.exists()
    write_idx(tmp_path / "env")
    monkeypatch.setenv("ATENT_DATA", str(tmp_path / "env"))
    assert len(datasets.load("mnist").train) == 20
    with pytest.raises(BadInput, match=str(tmp_path / "other")):
        datasets.load("mnist", tmp_path / "other")


# ---- digits


def test_digits_are_split_once_and_for_all(digits, no_home):
    assert digits.train.images.shape == (1437, 1, 8, 8)
    assert digits.test.images.shape == (360, 1, 8, 8)
    assert digits.train.images.dtype == torch.float32
    assert digits.train.labels.dtype == torch.int64
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 1)
    assert torch.equal(digits.train.images * 16, (digits.train.images * 16).round())
    assert digits.test.labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert digits.classes == tuple("0123456789")
    assert "360 of 1797" in digits.note
    again = datasets.load("digits", download=True)
    assert torch.equal(again.test.images, digits.test.images)
    assert not no_home.exists()


def test_digits_splits_are_disjoint_and_complete(digits):
    from sklearn.datasets import load_digits

    rows = torch.cat([digits.train.images, digits.test.images]).flatten(1)
    labels = torch.cat([digits.train.labels, digits.test.labels])
    ours = sorted((*(row * 16).int().tolist(), label) for row, label in zip(rows, labels.tolist(), strict=True))
    bunch = load_digits()
    theirs = sorted((*map(int, row), int(label)) for row, label in zip(bunch.data, bunch.target, strict=True))
    assert ours == theirs
    assert len(set(ours)) == 1797  # no image occurs twice, so equal multisets mean disjoint splits


# ---- MNIST and Fashion-MNIST


@pytest.mark.data
def test_mnist_is_the_official_one(mnist):
    assert mnist.train.images.shape == (60000, 1, 28, 28)
    assert mnist.test.images.shape == (10000, 1, 28, 28)
    assert mnist.train.images.dtype == torch.float32
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.train.images.double().mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert mnist.train.images.double().std().item() == pytest.approx(0.3081, abs=1e-4)
    assert (mnist.train.images.min(), mnist.train.images.max()) == (0, 1)


@pytest.mark.data
@pytest.mark.parametrize(
    ("part", "md5"), [("train", "6bbc9ace898e44ae57da46a324031adb"), ("test", "2646ac647ad5339dbf082846283269ea")]
)
def test_mnist_pixels_have_the_published_md5(mnist, part, md5):
    images = getattr(mnist, part).images
    content = idx((images * 255).round().to(torch.uint8).squeeze(1).numpy())
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() == md5


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_plain_or_gzipped_and_not_changed(tmp_path, packed):
    write_idx(tmp_path, packed=packed)
    before, values = tree(tmp_path), fake_values()
    loaded = datasets.load("mnist", str(tmp_path))
    for split, part in ((loaded.train, "train"), (loaded.test, "t10k")):
        pixels = torch.from_numpy(values[f"{part}-images-idx3-ubyte"])
        assert torch.equal((split.images * 255).round().to(torch.uint8), pixels.unsqueeze(1))
        assert split.labels.tolist() == values[f"{part}-labels-idx1-ubyte"].tolist()
    assert tree(tmp_path) == before


def test_fashion_mnist_has_its_own_folder_and_classes(tmp_path):
    write_idx(tmp_path, folder="FashionMNIST")
    loaded = datasets.load("fashion-mnist", tmp_path)
    assert (len(loaded.train), len(loaded.test)) == (20, 10)
    assert loaded.classes[0] == "T-shirt/top"
    assert loaded.classes[9] == "Ankle boot"


def cut(content):
    return content[:-100]


def flip(content):
    return content[:3000] + bytes([content[3000] ^ 255]) + content[3001:]


def web_page(content):
    return b"<!DOCTYPE html><html>404</html>"


def packed_labels(content):
    return gzip.compress(idx(fake_values()["t10k-labels-idx1-ubyte"]))


def packed_half(content):
    return gzip.compress(gzip.decompress(content)[:4000])


def empty(content):
    return b""


@pytest.mark.parametrize("damage", [cut, flip, web_page, packed_labels, packed_half, empty])
def test_a_broken_gzipped_file_is_named(tmp_path, damage):
    path = write_idx(tmp_path) / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert reason(datasets.load, "mnist", tmp_path, match=f"{path} .*--download") == ("unreadable", "root")


@pytest.mark.parametrize("damage", [cut, web_page, empty])
def test_a_broken_plain_file_is_named(tmp_path, damage):
    path = write_idx(tmp_path, packed=False) / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    match = f"{path} is not a whole IDX file of rank 3; delete it and fetch it anew with --download"
    assert reason(datasets.load, "mnist", tmp_path, match=match) == ("unreadable", "root")


def test_labels_of_another_split_are_refused(tmp_path):
    raw = write_idx(tmp_path)
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes((raw / "train-labels-idx1-ubyte.gz").read_bytes())
    assert reason(datasets.load, "mnist", tmp_path, match=r"labels have shape \(20,\)") == ("bad-shape", "labels")


def test_download_fetches_into_the_root_or_the_cache(tmp_path, monkeypatch, no_home):
    def fetch(self):
        if not Path(self.raw_folder).exists():
            write_idx(Path(self.root), packed=False)

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fetch)
    assert len(datasets.load("mnist", tmp_path / "root", download=True).test) == 10
    assert (tmp_path / "root/MNIST/raw").is_dir()
    assert len(datasets.load("mnist", download=True).test) == 10
    assert (no_home / ".cache/atent_ext/MNIST/raw").is_dir()
    assert len(datasets.load("mnist").test) == 10


def test_a_failed_download_is_bad_input(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    match = r"cannot fetch data set 'mnist'.*no route to host"
    assert reason(datasets.load, "mnist", tmp_path, download=True, match=match) == ("missing", "root")


# ---- CIFAR


def write_cifar(root, monkeypatch, kind, label_key):
    """Two training batches of 3 images and a test batch of 2; torchvision is made to expect their MD5s."""
    folder, draw = root / kind.base_folder, np.random.default_rng(0)
    folder.mkdir(parents=True)

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes(), usedforsecurity=False).hexdigest()]

    def batch(labels):
        pixels = draw.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        return {"data": pixels, label_key: labels}, pixels

    batches = [batch(labels) for labels in ([6, 9, 9], [4, 1, 1], [3, 8])]
    names = [f"class {k}" for k in range(10 if label_key == "labels" else 100)]
    meta_file, meta_md5 = write(kind.meta["filename"], {kind.meta["key"]: names})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": meta_file, "md5": meta_md5})
    monkeypatch.setattr(kind, "train_list", [write("one", batches[0][0]), write("two", batches[1][0])])
    monkeypatch.setattr(kind, "test_list", [write("test", batches[2][0])])
    return [pixels for _, pixels in batches]


@pytest.mark.parametrize(("name", "label_key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar_keeps_order_channels_and_labels(tmp_path, monkeypatch, name, label_key):
    kind = getattr(torchvision.datasets, name.upper())
    first, second, test = write_cifar(tmp_path, monkeypatch, kind, label_key)
    loaded = datasets.load(name, tmp_path)
    expected = torch.from_numpy(np.concatenate([first, second]).reshape(-1, 3, 32, 32))
    assert torch.equal((loaded.train.images * 255).round().to(torch.uint8), expected)
    assert torch.equal((loaded.test.images * 255).round().to(torch.uint8), torch.from_numpy(test).view(-1, 3, 32, 32))
    assert loaded.train.labels.tolist() == [6, 9, 9, 4, 1, 1]
    assert loaded.test.labels.tolist() == [3, 8]
    assert len(loaded.classes) == {"cifar10": 10, "cifar100": 100}[name]
    assert loaded.classes[3] == "class 3"
    assert loaded.train.images.is_contiguous()


def test_a_broken_cifar_file_is_named(tmp_path, monkeypatch):
    kind = torchvision.datasets.CIFAR10
    write_cifar(tmp_path, monkeypatch, kind, "labels")
    path = tmp_path / kind.base_folder / "two"
    path.write_bytes(cut(path.read_bytes()))
    assert reason(datasets.load, "cifar10", tmp_path, match=f"{path} is broken") == ("unreadable", "root")


# ---- image folders


def write_images(root, size=(6, 4), mode="RGB"):
    """Three images of `cat` and two of `ant` in train, one of each in test; image k is the constant 10 k + 5."""
    for k, file in enumerate(("train/cat/a", "train/cat/b", "train/cat/c", "train/ant/a", "train/ant/b")):
        save(root / f"{file}.png", 10 * k + 5, size, mode)
    save(root / "test/cat/a.png", 105, size, mode)
    save(root / "test/ant/a.png", 115, size, mode)


def save(path, value, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value + 1, value + 2)).save(path)


def test_image_folder_sorts_the_classes_and_alternates_between_them(tmp_path):
    write_images(tmp_path)
    loaded = datasets.load(f"folder:{tmp_path}")
    assert loaded.name == f"folder:{tmp_path}"
    assert loaded.classes == ("ant", "cat")
    assert loaded.train.images.shape == (5, 3, 4, 6)
    assert loaded.train.images.dtype == torch.float32
    assert loaded.train.labels.tolist() == [0, 1, 0, 1, 1]
    assert torch.allclose(loaded.train.images[:, 0, 0, 0] * 255, torch.tensor([35.0, 5.0, 45.0, 15.0, 25.0]))
    assert torch.allclose(loaded.train.images[0, :, 3, 5] * 255, torch.tensor([35.0, 36.0, 37.0]))
    assert torch.allclose(loaded.test.images[:, 0, 0, 0] * 255, torch.tensor([115.0, 105.0]))
    assert loaded.test.labels.tolist() == [0, 1]
    assert loaded.note == f"image folder {tmp_path.name} (.png)"


def test_image_folder_may_be_relative_and_gray(tmp_path, monkeypatch):
    write_images(tmp_path / "mine", mode="L")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATENT_DATA", "/nowhere")
    loaded = datasets.load("folder:mine")
    assert loaded.train.images.shape == (5, 3, 4, 6)
    assert torch.allclose(loaded.train.images[0, :, 0, 0] * 255, torch.tensor([35.0, 35.0, 35.0]))


def test_image_folder_names_the_first_image_of_another_size(tmp_path):
    write_images(tmp_path)
    save(tmp_path / "test/ant/b.png", 7, size=(5, 4))
    match = r"test/ant/b\.png is 5×4, but the first image is 6×4"
    loaded = datasets.load(f"folder:{tmp_path}")
    assert len(loaded.test[:2].images) == 2
    assert reason(loaded.test.__getitem__, slice(2, 3), match=match) == ("bad-shape", "images")


def test_image_folder_names_a_file_that_is_no_image(tmp_path):
    write_images(tmp_path)
    (tmp_path / "train/cat/b.png").write_bytes(b"<html>")
    match = r"train/cat/b\.png cannot be read"
    assert reason(getattr, datasets.load(f"folder:{tmp_path}").train, "images", match=match) == ("unreadable", "name")


def test_image_folder_must_exist_and_have_the_same_classes_twice(tmp_path):
    name = f"folder:{tmp_path}"
    assert reason(datasets.load, name, match=f"{tmp_path}/train is not an image folder") == ("missing", "name")
    write_images(tmp_path)
    (tmp_path / "train/dog").mkdir()
    assert reason(datasets.load, name, match="dog") == ("unreadable", "name")
    save(tmp_path / "train/dog/a.png", 1)
    assert reason(datasets.load, name, match="differ in their classes: dog") == ("conflict", "name")


def test_an_image_folder_of_tests_alone_has_no_training_images(tmp_path):
    write_images(tmp_path)
    whole = datasets.load(f"folder:{tmp_path}")
    shutil.rmtree(tmp_path / "train")
    loaded = datasets.load(f"folder:{tmp_path}")
    assert torch.equal(loaded.test.images, whole.test.images)
    assert (len(loaded.train), loaded.train.images.shape[1:], loaded.classes) == (0, (3, 4, 6), whole.classes)
    assert loaded.note == f"image folder {tmp_path.name} (.png), for tests only"
    assert reason(datasets.hold_out, loaded.train, 1, seed=0) == ("missing", "train")


def test_only_arrays_may_be_said_to_have_other_classes(digits):
    assert datasets.load("digits", classes=10).classes == digits.classes
    assert reason(datasets.load, "digits", classes=9) == ("conflict", "classes")
    assert reason(datasets.load, "npz:nowhere", classes=0) == ("bad-value", "classes")
