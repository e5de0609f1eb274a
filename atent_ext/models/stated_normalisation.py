"""Whether a weights file speaks of a normalisation of images, and whether that is the stated one."""

from pathlib import Path

import torch
from torch import Tensor

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Normalisation, StatedNormalisation
from atent_ext.storage import checkpoints, state_dicts
from atent_ext.storage.checkpoints import Contents, Group, Scale, listed, shown
from atent_ext.storage.state_dicts import Fit

_SCALE = "under normalisation in card.yaml, or by --normalisation"


def check(found: Contents, fit: Fit, stated: StatedNormalisation, path: Path, notes: list[str]) -> None:
    """Compare the normalisation that the file speaks of with the stated one.

    The file may store mean and std beside the network, or have them as lists, or the network may stand at a place of a
    Sequential behind something without weights. Raises BadInput where it differs, or is not stated.
    """
    stored = _stored(fit.group, set(fit.names.values()))
    active = [scale for scale in stored if any(not _is_identity(other) for other in stored if other.stem == scale.stem)]
    claimed = stated if isinstance(stated, Normalisation) else None
    if stored and (active or claimed is not None):
        for scale in active or stored:
            if claimed is None or not _agrees(scale, claimed):
                raise _contradiction(scale, stated, path)
        notes.append(
            f"the stored normalisation, {listed([scale.name for scale in active or stored])}, is the stated one"
        )
        return
    if stored:
        notes.append(f"the stored normalisation, {listed([scale.name for scale in stored])}, is mean 0 and std 1: none")
    elsewhere = _elsewhere(found, fit.group)
    for scale in elsewhere:
        if stated is None or (claimed is not None and not _agrees(scale, claimed)):
            raise _contradiction(scale, stated, path)
    if elsewhere and stated == "none":
        notes.append(
            f"the file mentions a normalisation, {listed([scale.name for scale in elsewhere])}; none is stated"
        )
    if stated is not None:
        return
    if any(part.isdigit() and part.strip("0") for part in fit.prefix):
        message = (
            f"{path} has the network under {shown('.'.join(fit.prefix) + '.')}: in a Sequential, behind something "
        )
        message += "without weights, mostly a normalisation, which changes every figure; state its mean and std, or "
        message += f"'none' if there is none, {_SCALE}"
        raise BadInput(message, code="missing", field="normalisation")
    if not state_dicts.only_wrappers(fit.prefix):
        notes.append(
            f"no normalisation is stated, and none is applied; had {shown('.'.join(fit.prefix))} one, state it"
        )


def _stored(group: Group, own: set[str]) -> list[Scale]:
    if group.ordered:
        return []
    found = [(name, tensor, checkpoints.scale_kind(name)) for name, tensor in group.tensors.items() if name not in own]
    return [Scale(name, kind, tensor) for name, tensor, kind in found if kind]


def _elsewhere(found: Contents, own: Group) -> list[Scale]:
    """A mean and a std that lie together outside the network's group, as tensors or as lists, and do something."""
    scales = list(found.scales)
    for group in found.groups:
        pair = [] if group is own else [scale for scale in _stored(group, set()) if _numbers(scale.values) is not None]
        for scale in pair:
            if {other.kind for other in pair if other.stem == scale.stem} == {"mean", "std"}:
                scales.append(Scale(".".join((*group.path, scale.name)), scale.kind, scale.values))
    return [scale for scale in scales if any(not _is_identity(other) for other in scales if other.stem == scale.stem)]


def _is_identity(scale: Scale) -> bool:
    neutral = 0.0 if scale.kind == "mean" else 1.0
    return _numbers(scale.values) is not None and all(value == neutral for value in _numbers(scale.values) or ())


def _numbers(values: Tensor) -> list[float] | None:
    """The values if they are a few real numbers."""
    few = 0 < values.numel() <= 16 and not values.is_complex()
    return [float(value) for value in values.flatten()] if few else None


def _agrees(scale: Scale, claimed: Normalisation) -> bool:
    numbers, own = _numbers(scale.values), claimed.mean if scale.kind == "mean" else claimed.std
    if numbers is None or len(numbers) not in (1, len(own)):
        return False
    stored = torch.tensor(numbers * (len(own) // len(numbers)), dtype=torch.float64)
    return bool(torch.allclose(stored, torch.tensor(own, dtype=torch.float64), atol=1e-4))


def _contradiction(scale: Scale, stated: StatedNormalisation, path: Path) -> BadInput:
    numbers = _numbers(scale.values)
    values = (
        f"of shape {tuple(scale.values.shape)}" if numbers is None else ", ".join(f"{value:.4g}" for value in numbers)
    )
    claimed = (stated.mean if scale.kind == "mean" else stated.std) if isinstance(stated, Normalisation) else stated
    said = f"{claimed} is stated" if claimed is not None else "none is stated"
    message = (
        f"{path} holds a normalisation, {shown(scale.name)} = ({values}), and {said}; state its mean and std {_SCALE}"
    )
    return BadInput(message, code="conflict", field="normalisation")
