"""AutoAttack as an attack of a protocol."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from atent_ext.attacks import autoattack
from atent_ext.attacks.accuracy import clean_flags, elected, votes
from atent_ext.attacks.restarts import allowed
from atent_ext.attacks.spec import AttackSpec, Note, Outcome, Passes, Setting
from atent_ext.core.norms import ball
from atent_ext.data.datasets import Split

DRAWS = 21
"""The number of draws of a random network in the majority vote on an image."""


class AutoAttackSpec(AttackSpec):
    """AutoAttack (Croce & Hein 2020). version: "standard", "rand" or "plus".

    The flags of "rand" are those of one draw. `per_image` says whether the majority vote of `DRAWS` draws is right, on
    each clean image and on its adversary.
    """

    attack: Literal["autoattack"] = "autoattack"
    by_image: ClassVar[bool] = True
    version: Literal["standard", "rand", "plus"] = "standard"

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images. If AutoAttack cannot run as published it is changed, and notes describe the changes."""
        threat = setting.threat
        result = autoattack.run(
            model,
            split.images,
            split.labels,
            norm=threat.norm,
            eps=threat.eps,
            version=self.version,
            seed=setting.seed,
            batch_size=setting.batch_size,
            on_attack=lambda name, images: setting.busy(f"AutoAttack: {name} on {images} images"),
        )
        settings: dict[str, Any] = {"version": self.version, "package": result.package, "attacks": list(result.attacks)}
        changed = any(note.kind == "changed" for note in result.notes)
        name = "AutoAttack, changed" if changed else "AutoAttack"
        inside = allowed(ball(threat.norm), threat.eps, split.images, result.adversaries)
        clean = clean_flags(model, split, setting.batch_size)
        flags = torch.where(inside, result.robust, clean)
        broken = (clean & ~flags).nonzero().flatten()
        setting.found(broken, result.adversaries[broken])
        notes = (*result.notes, *_outside(int((~inside).sum())))
        per_image: dict[str, list[float]] = {}
        if self.version == "rand":
            settings["draws"] = DRAWS
            counted = torch.where(_wide(inside, split.images), result.adversaries, split.images)
            both = {"clean_majority": split.images, "majority": counted}
            chosen = {key: elected(votes(model, x, DRAWS, setting.batch_size)) for key, x in both.items()}
            per_image = {key: (classes == split.labels).double().tolist() for key, classes in chosen.items()}
        after = result.robust_after
        return Outcome("autoattack", name, settings, flags, notes=notes, robust_after=after, per_image=per_image)

    def passes(self, classes: int) -> Passes | None:
        """As published: APGD-CE, APGD-T and FAB-T of 100 steps, for 9 targets at most, and 5,000 queries of Square.

        "rand": two APGD of 100 steps, with 20 gradients a step. "plus" is not counted.
        """
        if self.version == "plus":
            return None
        targets = min(classes - 1, 9)
        chains = 101 * (1 + targets) + 100 * targets
        known = {"standard": Passes(chains, 5000 + 100 * targets), "rand": Passes(2 * 101 * 20, 0)}
        return known[self.version]

    def for_random_network(self) -> AttackSpec:
        """The version "rand", which averages gradients over several random forward passes."""
        return self.model_copy(update={"version": "rand"})


def _wide(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (x.dim() - 1))


def _outside(count: int) -> tuple[Note, ...]:
    return (Note(kind="outside", text=f"{count} adversaries left ball or box and do not count"),) if count else ()
