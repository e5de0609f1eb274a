"""BPDA (Athalye et al. 2018): annealed ATENT whose gradients pass layers that saturate as if they were the identity."""

from dataclasses import replace
from typing import ClassVar, Literal

from torch import nn

from atent_ext.attacks.spec import Note, Outcome, Setting
from atent_ext.attacks.specs.gradient import ATENTSpec
from atent_ext.attacks.straight import straight_through
from atent_ext.core.schema import Count
from atent_ext.data.datasets import Split


class BPDASpec(ATENTSpec):
    """`atent` with gradients straight through the layers of `straight.SATURATING`; without such layers, `atent`."""

    attack: Literal["bpda"] = "bpda"  # type: ignore[assignment]
    steps: Count = 100
    restarts: Count = 3
    title: ClassVar[str] = "BPDA"

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images with `restarts` chains each; a note says how many layers gradients passed."""
        with straight_through(model) as layers:
            outcome = super().run(model, split, setting)
        found = Note(kind="other", text=f"layers that saturate, which gradients passed as the identity: {layers}")
        none = Note(kind="warning", text="no layer that saturates was found; this is annealed ATENT under another name")
        return replace(outcome, notes=(*outcome.notes, found if layers else none))
