"""Arrays that lack classes or training images: the cause is named, and the count can be stated."""

import json

import numpy as np
import pytest
import torch
from commands import atent, refused

import atent_ext
from atent_ext.attacks.accuracy import clean_flags
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet, Split
from atent_ext.subjects import run_folder
from atent_ext.training import recipes
from atent_ext.training.loop import fit

NAME = "quickstart-digits-linf-sgd"
WEIGHTS = registry.folder("weights") / f"{NAME}.safetensors"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The first test digits below 9, of 10 classes, as floats of 0-255 with the channels last."""
    test = datasets.load("digits").test
    kept = (test.labels < 9).nonzero().flatten()[:40]
    path = tmp_path_factory.mktemp("arrays") / "few.npz"
    images = (255 * test.images[kept]).permute(0, 2, 3, 1)
    np.savez(path, x_test=images.numpy(), y_test=test.labels[kept].numpy())
    return path, Split(test.images[kept], test.labels[kept])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recipe and its overrides: 120 digits below 9 as arrays, one epoch from the weights of 10 classes."""
    train = datasets.load("digits").train
    kept = (train.labels < 9).nonzero().flatten()[:120]
    path = tmp_path_factory.mktemp("arrays") / "train.npz"
    pixels = (16 * train.images[kept]).numpy().astype(np.uint8)
    labels = train.labels[kept].numpy()
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels[:10], y_test=labels[:10])
    return [f"dataset=npz:{path}", "epochs=1", "validation.count=20", "validation.steps=1", f"init_from={WEIGHTS}"]


def test_a_checkpoint_of_more_classes_than_labels_says_why_and_takes_the_count(few, tmp_path):
    path, split = few
    options = ["--model", "digits-cnn", "--dataset", f"npz:{path}", "--eps", 0.1, "--protocol", "clean"]
    cause = f"npz:{path} has labels up to 8, which count as 9 classes: if the network has more, state them with --"
    refused(atent("eval", WEIGHTS, *options), "does not fit", cause)
    done = atent("eval", WEIGHTS, *options, "--classes", 10, "--out", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert "note: arrays few.npz, 40 test images; (N, H, W, C), 8×8 pixels of 1 channel, read as" in done.stdout
    flags = clean_flags(atent_ext.load(NAME), split)
    assert json.loads((tmp_path / "r.json").read_text())["results"][0]["flags"] == "".join("01"[int(f)] for f in flags)
    refused(atent("eval", WEIGHTS, *options, "--classes", 8), "labels span [0, 8]; of 8 classes they are 0 to 7")
    refused(atent("eval", NAME, "--classes", 10), "drop --classes")


def test_a_recipe_may_state_its_classes(trained, tmp_path):
    recipe = recipes.load("digits-linf-sgd", trained)
    images = datasets.load(recipe.dataset)
    with pytest.raises(BadInput, match=r"does not fit .* \(in a recipe: classes\)"):
        fit(recipe, images, tmp_path / "refused")
    changes = [part for change in (*trained, "classes=10") for part in ("--set", change)]
    done = atent("train", "digits-linf-sgd", "--out", tmp_path / "run", *changes)
    assert done.returncode == 0, done.stderr
    assert "note: arrays train.npz, 120 training and 10 test images" in done.stdout
    subject = run_folder.from_run(tmp_path / "run")
    assert subject.model(subject.test.images).shape == (10, 10)


def split(*shape, labels=None):
    x = torch.rand(40, *shape)
    return Split(x, torch.arange(40) % 10 if labels is None else labels)


@pytest.mark.parametrize(
    ("data", "code", "field", "words"),
    [
        (split(8, 8, 1), "bad-shape", "images", "(N, H, W, C), 8×8 pixels of 1 channel;"),
        (split(1, 8, 8, labels=torch.eye(10).repeat(4, 1)), "bad-type", "labels", "labels.argmax(1)"),
        (Split(split(1, 8, 8).images.mul(255), torch.arange(40) % 10), "bad-value", "images", "divide them by 255"),
        (Split(split(1, 8, 8).images.mul(255).byte(), torch.arange(40) % 10), "bad-type", "images", "divide them by"),
        (Split(torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.long)), "missing", "train", "no training images"),
    ],
)
def test_what_a_recipe_cannot_be_trained_on_is_refused_by_name(tmp_path, data, code, field, words):
    recipe = recipes.load("digits-linf-sgd", ["validation.count=10"])
    with pytest.raises(BadInput) as error:
        fit(recipe, DataSet("mine", tuple("0123456789"), data, data), tmp_path / "run")
    assert (error.value.code, error.value.field) == (code, field)
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()
