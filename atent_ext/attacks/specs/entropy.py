"""The share of the eps ball's mass that is adversarial, image by image, as an attack of a protocol."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from atent_ext.attacks import gibbs
from atent_ext.attacks.accuracy import flags_under
from atent_ext.attacks.gibbs import Draws
from atent_ext.attacks.spec import AttackSpec, Note, Outcome, Passes, Setting
from atent_ext.core import seeds
from atent_ext.core.model_state import device_of
from atent_ext.core.norms import norm
from atent_ext.core.schema import Count, Positive
from atent_ext.data.datasets import Split


class EntropySpec(AttackSpec):
    """Draws of the Gibbs law of the cross-entropy in the eps ball (`attacks.gibbs`).

    An image counts as robust if the model is right on the clean image and at the drawn point of largest loss.
    `per_image` has the share of adversarial mass, its 95 % interval, split R-hat and effective sample size.
    chains: per image. steps: per chain, after `burn_in` steps; every `thin`-th step is a draw.
    """

    attack: Literal["entropy"] = "entropy"
    temperature: Positive = 1.0
    chains: Count = 4
    burn_in: Count = 200
    steps: Count = 400
    thin: Count = 2

    def passes(self, classes: int) -> Passes:
        """The steps of all chains and their starts; the image and the worst point are checked."""
        return Passes(self.chains * (self.burn_in + self.steps + 1), 2)

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Draw for all images."""
        ball, eps = norm(setting.threat.norm), setting.threat.eps
        generator = seeds.generator(setting.seed, device_of(model))
        drawn: list[Draws] = []

        def largest(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            chain = gibbs.kernel(ball, eps, self.burn_in + self.steps, self.temperature, x.shape[1:])
            how: dict[str, Any] = {"chains": self.chains, "burn_in": self.burn_in, "thin": self.thin}
            drawn.append(gibbs.draw(chain, model, x, y, keep_points=False, generator=generator, **how))
            return drawn[-1].worst

        flags = flags_under(largest, model, split, ball, eps, setting.batch_size, found=setting.found)
        shares, rhat = torch.cat([part.share for part in drawn]), torch.cat([part.rhat for part in drawn])
        figures = {
            "share": shares,
            "share_low": torch.cat([part.interval[:, 0] for part in drawn]),
            "share_high": torch.cat([part.interval[:, 1] for part in drawn]),
            "rhat": rhat,
            "effective": torch.cat([part.effective for part in drawn]),
        }
        settings = {name: getattr(self, name) for name in ("temperature", "chains", "burn_in", "steps", "thin")}
        count = int((rhat <= gibbs.MIXED).sum())
        mixed = f"the chains of {count} of {len(split)} images have mixed (split R-hat at most {gibbs.MIXED})"
        return Outcome(
            "attack",
            f"Gibbs draws at temperature {self.temperature:g}",
            settings,
            flags,
            notes=(Note(kind="other", text=mixed),),
            per_image={name: [round(value, 5) for value in values.tolist()] for name, values in figures.items()},
        )
