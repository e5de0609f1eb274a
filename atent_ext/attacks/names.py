"""The attacks that a protocol can name. Nothing here imports torch, so that they are listed quickly."""

from collections.abc import Mapping
from typing import Literal

AttackName = Literal["clean", "fgsm", "ifgsm", "pgd", "atent", "cw", "deepfool", "autoattack"]

_CHAIN = ("steps", "restarts", "step_size", "keep")
FIELDS: Mapping[AttackName, tuple[str, ...]] = {
    "clean": (),
    "fgsm": (),
    "ifgsm": ("steps",),
    "pgd": _CHAIN,
    "atent": (*_CHAIN, "noise", "project"),
    "cw": ("steps",),
    "deepfool": ("steps",),
    "autoattack": ("version",),
}
"""The fields of `AttackSpec` that apply to each attack."""
