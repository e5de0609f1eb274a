"""Names -> things: objectives, models, data sets as import paths; recipes and protocols as files.

Listing imports nothing heavy: an entry is the text `module:attribute`, resolved only when it is asked for.
"""

import difflib
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from atent_ext.errors import BadInput

OBJECTIVES: Mapping[str, str] = {
    "sgd": "atent_ext.objectives:Standard",
    "pgd-at": "atent_ext.objectives:PGDAT",
    "trades": "atent_ext.objectives:TRADES",
    "mart": "atent_ext.objectives:MART",
    "atent": "atent_ext.objectives:ATENT",
}

MODELS: Mapping[str, str] = {
    "digits-cnn": "atent_ext.models:DigitsCNN",
    "small-cnn": "atent_ext.models:SmallCNN",
    "lenet5-madry": "atent_ext.models:lenet5_madry",
    "lenet5-advertorch": "atent_ext.models:lenet5_advertorch",
    "resnet-18": "atent_ext.models:resnet18",
    "resnet-20": "atent_ext.models:ResNet20",
    "wrn-34-10": "atent_ext.models:wrn34_10",
    "vgg-11": "atent_ext.models:vgg11",
}

DATASETS: Mapping[str, str] = {
    "digits": "atent_ext.data:digits",
    "mnist": "atent_ext.data:mnist",
    "fashion-mnist": "atent_ext.data:fashion_mnist",
    "cifar10": "atent_ext.data:cifar10",
    "cifar100": "atent_ext.data:cifar100",
}

_HERE = Path(__file__).resolve().parent
# Where each kind of file lies in an installed wheel, and where in a checkout.
_FOLDERS = {
    "recipe": (_HERE / "_registry" / "recipes", _HERE.parent / "registry" / "recipes"),
    "protocol": (_HERE / "_protocols", _HERE.parent / "eval" / "protocols"),
}


def nearest(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """The error for an unknown `name` of some `kind`: it names the closest known one, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
    return BadInput(f"unknown {kind} {name!r}; {hint}")


def resolve(kind: str, name: str, entries: Mapping[str, str]) -> Any:
    """Import what `entries[name]` points to. Raises BadInput with the nearest name if there is no such entry."""
    if name not in entries:
        raise nearest(kind, name, entries)
    return pkgutil.resolve_name(entries[name])


def files(kind: str) -> dict[str, Path]:
    """Name -> YAML file of all shipped files of a kind ("recipe" or "protocol")."""
    folder = next((folder for folder in _FOLDERS[kind] if folder.is_dir()), None)
    if folder is None:
        raise BadInput(f"the installed package lacks its {kind} files; reinstall atent-ext")
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}
