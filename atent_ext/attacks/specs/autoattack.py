"""AutoAttack as an attack of a protocol."""

from typing import Literal

import torch
from torch import nn

from atent_ext.attacks import autoattack
from atent_ext.attacks.accuracy import clean_flags
from atent_ext.attacks.restarts import allowed
from atent_ext.attacks.spec import AttackSpec, Note, Outcome, Setting
from atent_ext.core.norms import norm
from atent_ext.data.datasets import Split


class AutoAttackSpec(AttackSpec):
    """AutoAttack (Croce & Hein 2020). version: "standard", "rand" or "plus"."""

    attack: Literal["autoattack"] = "autoattack"
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
        settings = {"version": self.version, "package": result.package, "attacks": list(result.attacks)}
        changed = any(note.kind == "changed" for note in result.notes)
        name = "AutoAttack, changed" if changed else "AutoAttack"
        inside = allowed(norm(threat.norm), threat.eps, split.images, result.adversaries)
        clean = clean_flags(model, split, setting.batch_size)
        flags = torch.where(inside, result.robust, clean)
        broken = (clean & ~flags).nonzero().flatten()
        setting.found(broken, result.adversaries[broken])
        notes = (*result.notes, *_outside(int((~inside).sum())))
        return Outcome("autoattack", name, settings, flags, notes=notes, robust_after=result.robust_after)

    def for_random_network(self) -> AttackSpec:
        """The version "rand", which averages gradients over several random forward passes."""
        return self.model_copy(update={"version": "rand"})


def _outside(count: int) -> tuple[Note, ...]:
    return (Note(kind="outside", text=f"{count} adversaries left ball or box and do not count"),) if count else ()
