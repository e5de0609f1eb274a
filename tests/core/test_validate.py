import pickle

import numpy as np
import pytest
import torch

from atent_ext.core import validate
from atent_ext.core.errors import AtentError, BadInput, MissingExtra, NonFiniteLoss, TermsCollected

INF, NAN = float("inf"), float("nan")


def refusal(check, *arguments):
    with pytest.raises(BadInput) as caught:
        check(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    "value",
    [0, 0.0, 3, 0.3, np.float32(0.3), np.float64(0.3), torch.tensor(0.3), torch.tensor([0.0, 2.0]), torch.tensor([1])],
)
def test_a_radius_may_be(value):
    assert validate.radius("eps", value) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-0.1, "-0.1"),
        (NAN, "nan"),
        (INF, "inf"),
        ("0.3", "'0.3'"),
        (None, "None"),
        ([0.3], "[0.3]"),
        (1j, "1j"),
        (torch.tensor([0.1, -1.0]), "a float32 tensor of shape (2,) with values in [-1, 0.1]"),
        (torch.tensor([0.1, NAN]), "a float32 tensor of shape (2,) with values in [nan, nan]"),
        (torch.tensor(INF), "a float32 tensor of shape () with value inf"),
        (torch.tensor([]), "a float32 tensor of shape (0,)"),
        (np.ones((2, 3)), "a float64 array of shape (2, 3) with values in [1, 1]"),
        ("0" * 200, "'" + "0" * 99 + "..."),
    ],
)
def test_a_radius_may_not_be(value, shown):
    assert refusal(validate.radius, "eps_iter", value) == f"eps_iter is {shown}; it must be a finite number >= 0"


@pytest.mark.parametrize("value", [1, 40, np.int64(3)])
def test_steps_may_be(value):
    assert validate.steps("nb_iter", value) is None


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (-1, "-1"), (2.0, "2.0"), (True, "True"), ("3", "'3'")])
def test_steps_may_not_be(value, shown):
    assert refusal(validate.steps, "nb_iter", value) == f"nb_iter is {shown}; it must be a whole number >= 1"


IMAGES = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("x", "low", "high"),
    [
        (IMAGES, 0.0, 1.0),
        (IMAGES.double(), 0, 1),
        (IMAGES.half(), 0.0, 1.0),
        (IMAGES[:, 0, 0], 0.0, 1.0),
        (IMAGES[:0], 0.0, 1.0),
        (IMAGES.where(IMAGES < 0.9, 1 + 1e-6), 0.0, 1.0),  # a rounding outside
        (IMAGES.where(IMAGES < 0.9, 1 + 9e-4), 0.0, 1.0),
        (IMAGES.where(IMAGES > 0.1, -1e-6), 0.0, 1.0),
        (255 * IMAGES, 0.0, 255.0),
        (6 * IMAGES - 3, -3.0, 3.0),
        (1e9 * (IMAGES - 0.5), -INF, INF),
        (1e9 * IMAGES, 0.0, INF),
        (IMAGES.clone().requires_grad_(), 0.0, 1.0),
    ],
)
def test_images_may_be(x, low, high):
    assert validate.images(x, low, high) is None


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (
            torch.tensor([[0.0, 254.5]]),
            "images span [0, 254.5], outside the box [0, 1]; they look like 0-255 images: divide them by 255",
        ),
        (
            torch.tensor([[-2.0, 2.5]]),
            "images span [-2, 2.5], outside the box [0, 1]; they look normalised: pass raw images and put the "
            "normalisation into the model",
        ),
        (torch.tensor([[0.0, NAN]]), "images hold NaN or infinity; remove them before attacking or training"),
        (torch.tensor([[0.0, -INF]]), "images hold NaN or infinity; remove them before attacking or training"),
        (
            torch.zeros(2, 3, dtype=torch.uint8),
            "images are torch.uint8 of shape (2, 3); a floating-point tensor (N, ...) in [0, 1] is needed; if they are "
            "0-255, divide them by 255",
        ),
        (
            torch.zeros(3),
            "images are torch.float32 of shape (3,); a floating-point tensor (N, ...) in [0, 1] is needed",
        ),
        (np.zeros((2, 3)), "images are ndarray; a floating-point tensor (N, ...) in [0, 1] is needed"),
    ],
)
def test_images_may_not_be(x, words):
    assert refusal(validate.images, x, 0.0, 1.0) == words


@pytest.mark.parametrize("edge", [1.01, -0.01])
def test_a_hundredth_is_no_rounding(edge):
    assert "outside the box [0, 1]" in refusal(validate.images, IMAGES.where(IMAGES < 0.9, edge), 0.0, 1.0)


def test_a_box_with_one_side_still_has_that_side():
    assert "outside the box [0, inf]" in refusal(validate.images, IMAGES - 0.5, 0.0, INF)
    assert "outside the box [-inf, 0]" in refusal(validate.images, IMAGES, -INF, 0.0)


@pytest.mark.parametrize(
    ("y", "count", "classes"),
    [
        (torch.tensor([0, 3, 1]), 3, 4),
        (torch.tensor([0, 3, 1], dtype=torch.int32), 3, 4),
        (torch.tensor([0, 3, 1], dtype=torch.uint8), 3, 4),
        (torch.tensor([0, 99]), 2, None),
        (torch.zeros(0, dtype=torch.long), 0, 4),
    ],
)
def test_labels_may_be(y, count, classes):
    assert validate.labels(y, count, classes) is None


@pytest.mark.parametrize(
    ("y", "classes", "words"),
    [
        (
            torch.tensor([0, 1, 4]),
            4,
            "labels span [0, 4]; they must be at least 0 and at most 3, for a model of 4 classes",
        ),
        (
            torch.tensor([0, 1, -1]),
            4,
            "labels span [-1, 1]; they must be at least 0 and at most 3, for a model of 4 classes",
        ),
        (torch.tensor([0, 1, -1]), None, "labels span [-1, 1]; they must be at least 0"),
        (torch.tensor([0, 1]), 4, "labels have shape (2,); one class number per image is needed: (3,)"),
        (
            torch.zeros(3, 4, dtype=torch.long),
            4,
            "labels have shape (3, 4); one class number per image is needed: (3,); "
            "of one-hot rows give labels.argmax(1)",
        ),
        (torch.tensor([0.0, 1.0, 2.0]), 4, "labels are torch.float32; integer class numbers are needed"),
        (torch.tensor([True, False, True]), 4, "labels are torch.bool; integer class numbers are needed"),
        (torch.zeros(3, dtype=torch.complex64), 4, "labels are torch.complex64; integer class numbers are needed"),
        ([0, 1, 2], 4, "labels are list; integer class numbers are needed"),
    ],
)
def test_labels_may_not_be(y, classes, words):
    assert refusal(validate.labels, y, 3, classes) == words


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (BadInput, ValueError),
        (MissingExtra, ImportError),
        (TermsCollected, RuntimeError),
        (NonFiniteLoss, ArithmeticError),
    ],
)
def test_an_error_is_ours_and_also_the_builtin_that_users_catch(error, builtin):
    assert issubclass(error, AtentError)
    assert issubclass(error, builtin)
    assert str(pickle.loads(pickle.dumps(error("why")))) == "why"  # it crosses process borders
