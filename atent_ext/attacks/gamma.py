"""Calibration of ATENT's ℓ2 pull: v2, A.2 chooses gamma so that the samples lie at about the distance eps."""

from dataclasses import replace

from scipy.optimize import brentq
from torch import Tensor

from atent_ext.attacks import langevin
from atent_ext.attacks.langevin import Langevin, last_iterate
from atent_ext.core import seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import device_of, evaluating
from atent_ext.core.norms import L2, Start
from atent_ext.core.types import Model


def calibrate_gamma(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 40,
    step_size: float = 0.125,
    noise: float = 1e-3,
    start: Start = "ball",
    box: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> float:
    """The gamma in (0, 1) for which unprojected ℓ2 chains end at a mean ℓ2 distance of eps from x.

    x: (N, ...) inside the box, y: (N,) labels; more images give a better estimate of the mean. The pull has the
    authors' form, gamma (x - x'). All values of gamma are tried with the same random draws, from `seed`. Raises
    BadInput if no gamma in (0, 1) gives that distance: without a pull the chains end inside eps, or even with gamma 1
    they end outside.
    """
    validate.images(x, *box)
    validate.labels(y, len(x))
    kernel = langevin.atent(
        L2, eps, steps, step_size, noise=noise, gamma=0.0, box=box, start=start, schedule="constant"
    )
    free = replace(kernel, project="never")
    weakest, strongest = (distance(model, x, y, replace(free, gamma=gamma), seed) for gamma in (0.0, 1.0))
    if weakest <= eps:
        message = f"without a pull the chains end at {weakest:.4g}, inside eps {eps:g}; take more or larger steps"
        raise BadInput(message, code="bad-value", field="step_size")
    if strongest >= eps:
        message = f"with gamma 1 the chains end at {strongest:.4g}, beyond eps {eps:g}; take a smaller step_size"
        raise BadInput(message, code="bad-value", field="step_size")
    root = brentq(lambda gamma: distance(model, x, y, replace(free, gamma=gamma), seed) - eps, 0.0, 1.0, xtol=1e-5)
    return float(root)


def distance(model: Model, x: Tensor, y: Tensor, kernel: Langevin, seed: int = 0) -> float:
    """The mean ℓ2 distance between x (N, ...) and the last iterates of one chain per example."""
    device = device_of(model)
    generator = seeds.generator(seed, device)
    x, y = x.to(device), y.to(device)
    with evaluating(model):
        ends = last_iterate(kernel, model, x, y, cross_entropy, generator)
    return float(L2.size(ends - x).mean())
