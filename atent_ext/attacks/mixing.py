"""Whether chains have mixed: split R-hat and effective sample size (Vehtari et al. 2021, sections 3 and 4).

Values are (chains, draws, N): one quantity, such as the loss, of every draw of N independent problems. Not
rank-normalised: the values are those of arviz' `rhat(method="split")` and `ess(method="mean")`.
"""

import numpy as np
import torch
from torch import Tensor

from atent_ext.core.errors import BadInput


def _halves(values: Tensor) -> Tensor:
    """Every chain as two, (chains, draws, N) -> (2 chains, draws // 2, N), in float64."""
    if values.dim() != 3 or values.shape[1] < 4:
        message = f"the draws have shape {tuple(values.shape)}; (chains, draws, N) with at least 4 draws is needed"
        raise BadInput(message, code="bad-shape", field="draws")
    half = values.shape[1] // 2
    return torch.cat([values[:, :half], values[:, -half:]]).double().cpu()


def _variances(split: Tensor) -> tuple[Tensor, Tensor]:
    """The mean variance within chains, and the pooled estimate that counts their distances, each (N,)."""
    count = split.shape[1]
    within = split.var(1).mean(0)
    return within, (count - 1) / count * within + split.mean(1).var(0)


def split_rhat(values: Tensor) -> Tensor:
    """R-hat of each problem, (N,): 1 for chains that have mixed; above 1.01 they have not. 1 for constant values."""
    within, pooled = _variances(_halves(values))
    return torch.where(pooled > 0, (pooled / within).sqrt(), torch.ones_like(pooled))


def effective_size(values: Tensor) -> Tensor:
    """How many independent draws the draws are worth for a mean, (N,); all of them for constant values."""
    split = _halves(values)
    chains, count, _ = split.shape
    within, pooled = _variances(split)
    safe = torch.where(pooled > 0, pooled, torch.ones_like(pooled))
    correlation = 1 - (within - _autocovariance(split).mean(0) * count / (count - 1)) / safe  # (draws, N)
    correlation[0] = 1.0
    times = torch.tensor([_time(column) for column in correlation.T.numpy()], dtype=torch.float64)
    size = chains * count / times.clamp_min(1 / np.log10(chains * count))
    return torch.where(pooled > 0, size, torch.full_like(size, float(chains * count)))


def _autocovariance(split: Tensor) -> Tensor:
    """At every lag, (chains, draws, N), over the number of draws, by a Fourier transform."""
    count = split.shape[1]
    spectrum = torch.fft.rfft(split - split.mean(1, keepdim=True), n=2 * count, dim=1)
    covariance: Tensor = torch.fft.irfft(spectrum.abs() ** 2, n=2 * count, dim=1)[:, :count] / count
    return covariance


def _time(correlation: np.ndarray) -> float:
    """The integrated autocorrelation time: Geyer's initial monotone sequence of sums of pairs of neighbouring lags."""
    pairs = correlation[: len(correlation) // 2 * 2].reshape(-1, 2).sum(1)
    negative = np.flatnonzero(pairs < 0)
    kept = pairs[: negative[0] if len(negative) else len(pairs)]
    return float(-1 + 2 * np.minimum.accumulate(kept).sum())
