"""Which of the weights in a checkpoint are meant.

What is guessed becomes a note. A guess that can change a figure is refused, with what there is to choose from.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atent_ext.core.errors import BadInput
from atent_ext.storage import checkpoints, state_dicts
from atent_ext.storage.checkpoints import Contents, Group, listed, shown
from atent_ext.storage.state_dicts import Fit, Wanted, is_counter

_MOST = 100
"""The most networks in one file."""
_LISTED = 12
"""How many differences an error lists."""
_TELL = "say which with weights_key in card.yaml, --weights-key, or init_weights_key in a recipe"
_OPTIMIZER = re.compile(r"optim|sched|(^|_)opt($|_)", re.IGNORECASE)
"""Keys of what belongs to the training, and may have tensors of the network's shapes."""
_COUNTS = {"swa_n", "n_averaged", "num_updates", "n_swa"}


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of the network in a file. tensors: by the network's names, without counters that the file lacks.

    lent: the buffers that the file has only under another name. key: the name in the file if there was a choice.
    """

    fit: Fit
    tensors: Mapping[str, Tensor]
    lent: tuple[str, ...] = ()
    key: str | None = None


def choose(found: Contents, wanted: Wanted, key: str | None, path: Path, notes: list[str]) -> Weights:
    """The weights that are meant: those called `key`, or the only ones, or the averaged ones.

    Raises BadInput where none fit, and where they differ and nothing decides.
    """
    fits = state_dicts.fits(found, wanted)
    whole = [fit for fit in fits if fit.has_all(wanted.parameters)]
    if len(whole) > _MOST:
        message = f"{path} holds more than {_MOST} networks that fit; save the one that is meant alone"
        raise BadInput(message, code="too-large", field="path")
    clean = [fit for fit in whole if not state_dicts.unknown(fit, _used(whole, fit.group))]
    every = _completed(clean, wanted)
    if not every:
        raise _unfit(found, fits, wanted, path)
    named = every if key is None else _called(key, every, path)
    classes = _classes(named, wanted)
    chosen = _decided(classes, path)
    if key is None:
        _refuse_rivals(found, every, chosen, wanted, path)
    others = [other for other in every if other is not chosen]
    _note_choice(found, chosen, others, key, wanted, notes)
    _note_names(found, chosen, others, notes)
    differ = key is not None or len(classes) > 1
    return Weights(chosen.fit, chosen.tensors, chosen.lent, chosen.fit.key if differ else None)


def _used(fits: Iterable[Fit], group: Group) -> set[str]:
    """The names in a group that belong to one of the fits."""
    return {stored for fit in fits if fit.group is group for stored in fit.names.values()}


def _completed(fits: Sequence[Fit], wanted: Wanted) -> list[Weights]:
    """The weights that can be put together. A file that lacks buffers gets them from raw weights in the same file.

    Many averages are of parameters alone, and are evaluated with the buffers of the network that was trained. A file
    that lacks only some buffers gets none: where they are is not known.
    """
    buffers = {name for name in wanted.state if not (name in wanted.parameters or is_counter(name))} - set(
        wanted.shared
    )
    lacking = {fit: [name for name in fit.missing if not is_counter(name)] for fit in fits}
    whole = [Weights(fit, _tensors(fit, wanted)) for fit in fits if not lacking[fit]]
    lenders = [weights for weights in whole if not weights.fit.averaged] or whole
    result = []
    for fit in fits:
        if not lacking[fit]:
            result.append(next(weights for weights in whole if weights.fit is fit))
        elif (
            lenders
            and buffers <= set(lacking[fit])
            and all(_equal(lenders[0], lender, lacking[fit], wanted) for lender in lenders)
        ):
            tensors = {name: lenders[0].tensors[name] for name in fit.missing if name in lenders[0].tensors}
            result.append(Weights(fit, {**_tensors(fit, wanted), **tensors}, tuple(lacking[fit])))
    return [weights for weights in result if not _untied(weights.fit, wanted)]


def _tensors(fit: Fit, wanted: Wanted) -> dict[str, Tensor]:
    """The tensors under the network's names; one that the network has under several names needs only one of them."""
    tensors = {name: fit.group.tensors[stored] for name, stored in fit.names.items()}
    first = {wanted.shared.get(name, name): tensor for name, tensor in tensors.items()}
    shared = {name: wanted.shared.get(name, name) for name in wanted.state}
    return {name: tensors.get(name, first[shared[name]]) for name in wanted.state if shared[name] in first}


def _untied(fit: Fit, wanted: Wanted) -> list[str]:
    """Names that share one tensor in the network, and have different ones in the file."""
    stored = {name: fit.group.tensors[other] for name, other in fit.names.items()}
    pairs = [(name, first) for name, first in wanted.shared.items() if name in stored and first in stored]
    return [name for name, first in pairs if not torch.equal(stored[name], stored[first])]


def _equal(one: Weights, other: Weights, names: Sequence[str], wanted: Wanted) -> bool:
    """Whether two sets of weights are equal under these names, in the network's precision."""
    for name in names:
        mine, theirs, dtype = one.tensors.get(name), other.tensors.get(name), wanted.state[name].dtype
        if mine is None or theirs is None or not (mine is theirs or torch.equal(mine.to(dtype), theirs.to(dtype))):
            return False
    return True


def _called(key: str, every: Sequence[Weights], path: Path) -> list[Weights]:
    """The weights of this name, or those below it: "ema" is "ema.shadow" where nothing else lies there."""
    exact = [weights for weights in every if weights.fit.key == key]
    below = [weights for weights in every if weights.fit.key.startswith(f"{key}.")]
    if not (exact or below):
        message = (
            f"weights_key is {shown(key)}, and {path} has weights of this network under {_keys(every)}; name those"
        )
        raise BadInput(message, code="unknown-name", field="weights_key")
    return exact or below


def _classes(every: Sequence[Weights], wanted: Wanted) -> list[list[Weights]]:
    """Weights that are equal, together."""
    names = [name for name in wanted.state if not is_counter(name)]
    classes: list[list[Weights]] = []
    for weights in every:
        same = next((known for known in classes if _equal(known[0], weights, names, wanted)), None)
        if same is None:
            classes.append([weights])
        else:
            same.append(weights)
    return classes


def _decided(classes: Sequence[Sequence[Weights]], path: Path) -> Weights:
    averaged = [found for found in classes if any(weights.fit.averaged for weights in found)]
    if len(classes) == 1:
        return classes[0][0]
    if len(averaged) != 1:
        keys = _keys([weights for found in classes for weights in found])
        message = f"{path} holds weights that differ, under {keys}, and nothing says which are reported; {_TELL}"
        raise BadInput(message, code="conflict", field="weights_key")
    return next(weights for weights in averaged[0] if weights.fit.averaged)


def _refuse_rivals(found: Contents, every: Sequence[Weights], chosen: Weights, wanted: Wanted, path: Path) -> None:
    """Raise BadInput if the file has other weights of the network in a form that cannot be read.

    Beside raw weights that is anything averaged, and tensors of half the network's shapes; beside averaged ones only
    the same of averaged tensors.
    """
    shapes = Counter(tensor.shape for tensor in wanted.state.values() if tensor.dim())
    rivals: dict[str, Counter[Any]] = {}
    for keys, averaged, tensor in _unread(found, every):
        if averaged and not chosen.fit.averaged:
            named = (keys[: depth + 1] for depth in range(len(keys)) if checkpoints.is_averaged(keys[: depth + 1]))
            place = shown(".".join(next(named, keys)))
            message = f"{path} holds averaged weights under {place} that are not those of the whole "
            message += f"network, beside {_keys([chosen])}; {_TELL}, or save the averaged network alone"
            raise BadInput(message, code="conflict", field="weights_key")
        if averaged == chosen.fit.averaged:
            rivals.setdefault(next(iter(keys), "."), Counter())[tensor.shape] += 1
    for key, others in rivals.items():
        if 2 * (others & shapes).total() >= shapes.total():
            message = f"{path} holds weights like those of the network under {shown(key)} that do not fit, beside "
            message += f"{_keys([chosen])}, and nothing says which are reported; {_TELL}"
            raise BadInput(message, code="conflict", field="weights_key")


def _unread(found: Contents, every: Sequence[Weights]) -> Iterator[tuple[Sequence[str], bool, Tensor]]:
    """The tensors that belong to no network and to no optimizer: their keys, whether they are averaged, the tensor."""
    for group in found.groups:
        used = _used((weights.fit for weights in every), group)
        for stored, tensor in group.tensors.items():
            inner = [] if group.ordered else stored.split(".")[:-1]
            keys = (*group.path, *inner)
            if tensor.dim() and stored not in used and not any(map(_OPTIMIZER.search, keys)):
                yield keys, checkpoints.is_averaged(inner, group.averaged), tensor


# ---- notes


def _note_choice(
    found: Contents, chosen: Weights, others: Sequence[Weights], key: str | None, wanted: Wanted, notes: list[str]
) -> None:
    names = [name for name in wanted.state if not is_counter(name)]
    same = [other for other in others if _equal(chosen, other, names, wanted)]
    different = [other for other in others if other not in same]
    place = chosen.fit.key if others or key else ".".join(chosen.fit.group.path)
    if place or others:
        note = f"the weights under {shown(place)} are read"
        if key is not None:
            note += ", as stated"
        elif different:
            note += "; they are averaged, which is what is reported"
            _refuse_empty_average(found, chosen, different)
        if different:
            note += f"; not read: {_keys(different)}"
        if same:
            note += f"; the same weights lie under {_keys(same)}"
        notes.append(note)
    if chosen.fit.group.ordered:
        notes.append("they are a list without names, read in the order of the network's parameters")
    if chosen.lent:
        notes.append(
            f"{len(chosen.lent)} buffers are not among them and come from the raw weights: {listed(chosen.lent)}"
        )


def _refuse_empty_average(found: Contents, chosen: Weights, others: Sequence[Weights]) -> None:
    """Raise BadInput if a counter beside the averaged weights says that nothing was averaged yet."""
    for name, count in checkpoints.entries(found, chosen.fit.group):
        number = count.item() if isinstance(count, Tensor) and count.numel() == 1 else count
        if name.rpartition(".")[2] in _COUNTS and isinstance(number, int | float) and number == 0:
            message = f"the weights under {_keys([chosen])} are averaged, and {shown(name)} is 0: nothing was averaged "
            message += f"yet; there are also {_keys(others)}; {_TELL}"
            raise BadInput(message, code="conflict", field="weights_key")


def _note_names(found: Contents, chosen: Weights, others: Sequence[Weights], notes: list[str]) -> None:
    """Notes on the names of the tensors, and on what of the file is not read."""
    fit = chosen.fit
    if fit.prefix:
        notes.append(f"the prefix {shown('.'.join((*fit.prefix, '')))} is taken off all names")
    if inner := state_dicts.inner_wrappers(fit):
        notes.append(f"{listed(inner)} of a wrapper around a part is taken out of the names")
    used = _used((weights.fit for weights in (chosen, *others)), fit.group)
    tensors = [name for name in fit.group.tensors if name not in used]
    aside = [".".join((*fit.group.path, name)) for name in tensors if checkpoints.scale_kind(name) is None]
    named = {other.fit.key for other in others}
    if left := [name for name in (*checkpoints.beside(found, fit.group), *aside) if name not in named]:
        notes.append(f"left aside: {listed(left)}")


def _keys(every: Sequence[Weights]) -> str:
    return listed([weights.fit.key for weights in every])


# ---- weights that do not fit


def _unfit(found: Contents, fits: Sequence[Fit], wanted: Wanted, path: Path) -> BadInput:
    """The error for a file without the network: what its best group of tensors lacks, adds or has otherwise."""
    named = [group for group in found.groups if not group.ordered]
    if not named and not fits:
        what = "a list"
        if isinstance(found.checkpoint, Mapping):
            what = listed([checkpoints.key_text(key) for key in found.checkpoint])
        message = f"{path} holds no tensors by name, but {what}; a plain state dict is needed"
        return BadInput(message, code="unreadable", field="path")
    if not fits:
        largest = max(named, key=lambda group: len(group.tensors))
        fits = [Fit(largest, (), {}, tuple(wanted.state), ())]
    best = fits[0]
    differences, remedy = _differences(best, wanted)
    where = f" under {shown(best.key)}" if best.key != "." else ""
    more = f" and {len(differences) - _LISTED} more" if len(differences) > _LISTED else ""
    text = ", ".join(differences[:_LISTED]) + more
    count = f"{best.right} of {len(wanted.state)} tensors fit{where}"
    message = f"{path} does not fit {wanted.network}: {text}; {count}; {remedy}"
    return BadInput(message, code="bad-shape", field="path")


def _differences(fit: Fit, wanted: Wanted) -> tuple[list[str], str]:
    unknown = state_dicts.unknown(fit, set(fit.names.values()))
    missing = [name for name in fit.missing if not is_counter(name)]
    tensors = {name: fit.group.tensors[stored] for name, stored in fit.names.items()}
    wrong = [(name, tensors[name], wanted.state[name]) for name in fit.wrong]
    shapes = [pair for pair in wrong if pair[1].shape != pair[2].shape]
    untied = [] if wrong else _untied(fit, wanted)
    texts = [
        *(f"missing {name}" for name in missing),
        *(f"unknown {shown(name)}" for name in unknown),
        *(f"wrong shape {name} {tuple(tensor.shape)} for {tuple(own.shape)}" for name, tensor, own in shapes),
        *(f"wrong type {name} {str(t.dtype).removeprefix('torch.')}" for name, t, own in wrong if t.shape == own.shape),
        *(f"{name} differs from {wanted.shared[name]}, which is the same tensor in the network" for name in untied),
    ]
    outputs = {(tensor.shape[:1], own.shape[:1]) for _, tensor, own in shapes}
    last = wanted.parameters[-1].rpartition(".")[0] if wanted.parameters else ""
    in_last = all(name.rpartition(".")[0] == last and t.shape[1:] == own.shape[1:] for name, t, own in shapes)
    if len(outputs) == 1 and in_last:
        (theirs,), (ours,) = outputs.pop()
        return (
            texts,
            f"the weights are for {theirs} classes, the network is for {ours}: name the data set of the weights",
        )
    if shapes:
        return texts, "name the architecture and the arguments that these weights were trained with"
    if unknown and not missing:
        return (
            texts,
            "the file holds more layers: name the architecture that has them, or save the network's state dict alone",
        )
    return texts, "save the whole state dict of the network, or name the architecture that these weights are of"
