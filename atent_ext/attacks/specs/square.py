"""Square (Andriushchenko et al. 2020), AutoAttack's attack without gradients, with a budget that can be chosen."""

from typing import Any, ClassVar, Literal

import torch
from torch import nn

from atent_ext.attacks import autoattack
from atent_ext.attacks.accuracy import clean_flags
from atent_ext.attacks.restarts import allowed
from atent_ext.attacks.spec import AttackSpec, Note, Outcome, Setting
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import ball
from atent_ext.core.schema import Count
from atent_ext.data.datasets import Split


class SquareSpec(AttackSpec):
    """Square with at most `queries` queries per image; AutoAttack uses 5,000."""

    attack: Literal["square"] = "square"
    by_image: ClassVar[bool] = True
    queries: Count = 1000

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images. If Square cannot run, it is left out, and a note says so."""
        threat, clean = setting.threat, clean_flags(model, split, setting.batch_size)
        name, settings = f"Square-{self.queries}", {"queries": self.queries}
        how: dict[str, Any] = {
            "norm": threat.norm,
            "eps": threat.eps,
            "seed": setting.seed,
            "batch_size": setting.batch_size,
        }
        try:
            result = autoattack.run(
                model, split.images, split.labels, version="custom", attacks=["square"], queries=self.queries, **how
            )
        except BadInput as error:
            if error.code != "unsupported":
                raise
            return Outcome("attack", name, settings, clean, notes=(Note(kind="no-attack", text=str(error)),))
        inside = allowed(ball(threat.norm), threat.eps, split.images, result.adversaries)
        flags = torch.where(inside, result.robust & clean, clean)
        broken = (clean & ~flags).nonzero().flatten()
        setting.found(broken, result.adversaries[broken])
        return Outcome("attack", name, settings, flags)
