"""What an evaluation will take, before it runs: forward passes and time on this machine, measured on a few images."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.attacks import autoattack
from atent_ext.attacks.accuracy import robust_flags
from atent_ext.attacks.langevin import pgd
from atent_ext.attacks.spec import Setting
from atent_ext.core import processes
from atent_ext.core.norms import norm
from atent_ext.core.tables import Table
from atent_ext.data.datasets import Split
from atent_ext.evaluation import drawn, scoring
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.run import run_protocol, total
from atent_ext.evaluation.scoring import Subject
from atent_ext.models.speed import prepare

POOL = 250
"""Images on which the share that a short attack leaves is measured, at most."""
_STEPS = 10
_SECONDS = 30.0
"""About the time that the second sample takes, for each of the two kinds of images."""
_SMALL = 4
"""Images of the second sample, at least. Without one, an image more costs as much as in a plain pass."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a batch, seconds of an image more in it, and forward passes of an image."""

    batch: float = 0.0
    image: float = 0.0
    passes: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a protocol takes here, on one process. share: of images that a short attack leaves; they are the dear ones.

    dear, cheap: the cost of those images and of the others. chunk, batch_size: images each.
    """

    share: float
    dear: Cost
    cheap: Cost
    chunk: int
    batch_size: int

    def passes(self, n: int) -> int:
        """Forward passes of one image, for n images."""
        return round(n * (self.share * self.dear.passes + (1 - self.share) * self.cheap.passes))

    def seconds(self, n: int) -> float:
        """Seconds for n images."""
        batches = n // self.chunk * ceil(self.chunk / self.batch_size) + ceil(n % self.chunk / self.batch_size)
        image = self.share * self.dear.image + (1 - self.share) * self.cheap.image
        return batches * (self.dear.batch if self.share else self.cheap.batch) + n * image

    def table(self, *counts: int) -> Table:
        """One row per number of images: passes, passes an image, time."""
        title = f"estimated; a short attack leaves {self.share:.0%} of the images, which take most passes"
        table = Table("images", "passes", "passes an image", "time here", title=title, figures=4)
        for n in sorted(set(counts)):
            passes = self.passes(n)
            table.add(f"{n:,}", f"{passes:,}", f"{passes / n:,.0f}", duration(self.seconds(n)))
        return table


def duration(seconds: float) -> str:
    """A time as text, in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def estimate(
    subject: Subject,
    protocol: Protocol,
    *,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    chunk: int | None = None,
    speed: str = "channels-last",
    busy: Callable[[str], None] = lambda text: None,
) -> Estimate:
    """Measure a few batches of an evaluation by `scoring.score` with these arguments, and write nothing.

    Images that PGD of 10 steps leaves (in L1, APGD-CE) and the others are measured apart, one alone and then several;
    whole batches are extrapolated from the two.
    """
    plan = scoring.planned(subject, protocol, n, seed, batch_size, chunk, processes.state())
    model = prepare(subject.model.to(plan.device), plan.sample, speed).model
    setting, pool = plan.setting, drawn.first(plan.split, min(POOL, len(plan.split)), seed)
    busy("the share of images that a short attack leaves")
    left = _left(model, pool, setting)
    busy("passes and time of images that a short attack leaves")
    dear = _cost(model, Split(pool.images[left], pool.labels[left]), protocol, setting)
    busy("passes and time of images that a short attack breaks")
    cheap = _cost(model, Split(pool.images[~left], pool.labels[~left]), protocol, setting)
    return Estimate(float(left.double().mean()), dear, cheap, plan.facts["chunk"], setting.batch_size)


def _left(model: nn.Module, pool: Split, setting: Setting) -> Tensor:
    """Which images a short attack leaves, (N,) bool: PGD, which has no form in L1, where it is APGD-CE."""
    threat = setting.threat
    if threat.norm != "L1":
        return robust_flags(model, pool, pgd(norm(threat.norm), threat.eps, _STEPS), setting)
    how: dict[str, Any] = {"norm": threat.norm, "eps": threat.eps}
    how |= {"version": "custom", "attacks": ["apgd-ce"], "batch_size": setting.batch_size}
    return autoattack.run(model, pool.images, pool.labels, **how, seed=setting.seed).robust


def _cost(model: nn.Module, split: Split, protocol: Protocol, setting: Setting) -> Cost:
    """The cost of images of one kind: of one alone, and where that is quick of as many as take half a minute."""
    if not len(split):
        return Cost()
    most = min(len(split), setting.batch_size)
    share = _marginal(model, split.take(most))
    _measured(model, split.take(1), protocol.model_copy(update={"attacks": protocol.attacks[:1]}), setting)  # imports
    alone, passes = _measured(model, split.take(1), protocol, setting)
    size = min(most, 1 + int(_SECONDS / (alone * share)))
    if size < _SMALL:
        return Cost(alone * (1 - share), alone * share, passes)
    several, passes = _measured(model, split.take(size), protocol, setting)
    image = max(0.0, (several - alone) / (size - 1))
    return Cost(max(0.0, several - image * size), image, passes / size)


def _measured(model: nn.Module, split: Split, protocol: Protocol, setting: Setting) -> tuple[float, int]:
    """Seconds and forward passes of the protocol on the images, in one batch."""
    start = time.perf_counter()
    outcomes = run_protocol(model, split, protocol, replace(setting, batch_size=len(split)))[: len(protocol.attacks)]
    return time.perf_counter() - start, total([outcome.passes for outcome in outcomes]) or 0


def _marginal(model: nn.Module, split: Split) -> float:
    """The time of one image in a full batch, as a share of that of one image alone."""
    if len(split) == 1:
        return 1.0
    device = next(model.parameters(), torch.empty(0)).device
    times = []
    for images in (split.images[:1].to(device), split.images.to(device)):
        for _ in range(2):  # the first is a warm-up
            start = time.perf_counter()
            x = images.clone().requires_grad_()
            torch.autograd.grad(model(x).sum(), x)[0].cpu()
            seconds = time.perf_counter() - start
        times.append(seconds)
    return min(1.0, times[1] / len(split) / times[0])
