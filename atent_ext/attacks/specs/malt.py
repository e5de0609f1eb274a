"""A chain for each of the nearest classes, by the estimate of MALT (Melamed et al. 2024)."""

from typing import Literal

from torch import nn

from atent_ext.attacks.langevin import atent
from atent_ext.attacks.restarts import Keep
from atent_ext.attacks.spec import AttackSpec, Outcome, Setting
from atent_ext.attacks.specs.gradient import Chain
from atent_ext.attacks.uphill import Target
from atent_ext.core.norms import norm
from atent_ext.core.schema import Count
from atent_ext.data.datasets import Split


class MALTSpec(Chain):
    """Annealed ATENT chains toward the `targets` nearest wrong classes, one after another.

    keep: "success" checks every iterate of a chain, "last" the last one.
    The distance to a class is estimated by the gap between the logits, divided by the norm of its gradient.
    """

    attack: Literal["malt"] = "malt"
    targets: Count = 4
    keep: Keep = "success"

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images, the nearest class first."""
        kernel = atent(norm(setting.threat.norm), setting.threat.eps, self.steps)
        losses = [Target(rank, nearest=True) for rank in range(self.targets)]
        return self.outcome("MALT", kernel, model, split, setting, self.targets, self.keep, losses)

    def for_random_network(self) -> AttackSpec:
        """keep="last": with random outputs, an iterate that succeeds once may fail the next time."""
        return self.model_copy(update={"keep": "last"})
