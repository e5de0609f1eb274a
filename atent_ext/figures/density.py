"""The stationary density of the Langevin kernel on a one-dimensional loss, with samples of the kernel (v2 Fig. 2).

p(x' | x) ∝ exp( (L(x') - gamma/2 (x' - x)²) / noise² )
"""

from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atent_ext.attacks.langevin import Langevin, input_gradient, walk
from atent_ext.core import seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import L2
from atent_ext.figures import plots


@dataclass(frozen=True)
class Setting:
    """The point x, gamma, noise and step_size of the kernel, and the numbers of chains and of steps per chain."""

    x: float = 0.4
    gamma: float = 3.0
    noise: float = 0.35
    step_size: float = 2e-3
    steps: int = 2000
    chains: int = 20_000

    @property
    def kernel(self) -> Langevin:
        """The kernel: raw gradient, pull term of the paper, no projection, no box. Raises BadInput as `Langevin`."""
        return Langevin(
            norm=L2,
            eps=1.0,
            steps=self.steps,
            step_size=self.step_size,
            direction="raw",
            noise=self.noise,
            gamma=self.gamma,
            pull="paper",
            project="never",
            box=(-torch.inf, torch.inf),
        )


@dataclass(frozen=True, eq=False)
class Density:
    """Values (M,) of the normalised density at the points `grid` (M,), with its mean and variance."""

    grid: Tensor
    values: Tensor
    mean: float
    variance: float


def bumpy(x: Tensor) -> Tensor:
    """The loss L, smooth with several maxima, elementwise; between 0.26 and 0.74."""
    return 0.5 + 0.18 * torch.sin(12 * x + 0.5) + 0.06 * torch.cos(5 * x - 4)


def quadrature(setting: Setting, points: int = 4001) -> Density:
    """The density on ±8 prior standard deviations (noise / sqrt(gamma)) around x, by the trapezoidal rule, float64.

    Raises BadInput unless gamma and noise are positive; otherwise the density does not exist.
    """
    validate.steps("points", points)
    for name in ("gamma", "noise"):
        if not getattr(setting, name) > 0:
            message = f"{name} is {getattr(setting, name)}; a density needs it above 0"
            raise BadInput(message, code="bad-value", field=name)
    reach = 8 * setting.noise / setting.gamma**0.5
    grid = setting.x + reach * torch.linspace(-1, 1, points, dtype=torch.float64)
    exponent = (bumpy(grid) - setting.gamma / 2 * (grid - setting.x) ** 2) / setting.noise**2
    weights = (exponent - exponent.max()).exp()
    values = weights / torch.trapezoid(weights, grid)
    mean = float(torch.trapezoid(grid * values, grid))
    return Density(grid, values, mean, float(torch.trapezoid((grid - mean) ** 2 * values, grid)))


def samples(setting: Setting, seed: int = 0) -> Tensor:
    """The last iterate of each independent chain, started at x; (chains,) float32."""
    validate.steps("chains", setting.chains)
    x = torch.full((setting.chains, 1), setting.x)
    gradient = input_gradient(bumpy, lambda value, _: value, x)
    chain = walk(setting.kernel, x, gradient, seeds.generator(seed))
    return deque(chain, maxlen=1).pop().squeeze(1)


def report(setting: Setting, drawn: Tensor, seed: int) -> dict[str, Any]:
    """Mean and variance of the samples (chains,) and of the density as plain data, with the setting."""
    exact = quadrature(setting)
    return {
        "figure": "density",
        "seed": seed,
        "setting": asdict(setting),
        "n": len(drawn),
        "samples": {"mean": float(drawn.mean()), "variance": float(drawn.var())},
        "quadrature": {"mean": exact.mean, "variance": exact.variance},
    }


def chart(setting: Setting, drawn: Tensor) -> Any:
    """A matplotlib Figure: the loss above; below, the density as a line over the histogram of the samples."""
    exact = quadrature(setting)
    high = (exact.values > 1e-3 * exact.values.max()).nonzero()
    near = slice(int(high[0]), int(high[-1]) + 1)
    figure, grid = plots._figure(6.0, 4.8, 2, 1, sharex="col")
    above, below = grid[0][0], grid[1][0]
    shown = exact.grid[near]
    above.plot(shown.numpy(), bumpy(shown).numpy(), color="black", label="loss L(x')")
    style = {"color": "0.8", "edgecolor": "0.4", "linewidth": 0.4}
    below.hist(
        drawn.numpy(), bins=80, range=(float(shown[0]), float(shown[-1])), density=True, label="samples", **style
    )
    below.plot(shown.numpy(), exact.values[near].numpy(), color="black", label="density p(x' | x)")
    for axes in (above, below):
        axes.axvline(setting.x, color="black", linestyle="--", linewidth=1, label=f"x = {setting.x:g}")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        axes.grid(alpha=0.3)
    above.set(ylabel="loss L(x')")
    below.set(xlabel="x'", ylabel="probability density")
    title = f"gamma {setting.gamma:g}, noise {setting.noise:g}: {len(drawn)} chains of {setting.steps} steps"
    above.set_title(f"{title} of {setting.step_size:g}", fontsize=10)
    return figure


def draw(setting: Setting, drawn: Tensor, path: Path) -> list[Path]:
    """Save `chart(setting, drawn)` to `path` and the `.svg` beside it; returns both."""
    return plots.save(chart(setting, drawn), path)
