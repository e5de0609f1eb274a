"""Names -> things: objectives, models, data sets as import paths; recipes and protocols as files.

Listing imports nothing heavy: an entry is the text `module:attribute`, resolved only when it is asked for.
Other packages join by entry points of the groups `atent_ext.objectives`, `atent_ext.models`, `atent_ext.datasets`
(name = "module:attribute") and `atent_ext.recipes` (any name = "a.package", a folder of YAML files).
"""

import difflib
import importlib.util
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
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
    "resnet-18-pyautoattack": "atent_ext.models:resnet18_pyautoattack",
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

_KINDS: Mapping[str, tuple[Mapping[str, str], str]] = {
    "objective": (OBJECTIVES, "atent_ext.objectives"),
    "model": (MODELS, "atent_ext.models"),
    "data set": (DATASETS, "atent_ext.datasets"),
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


def entries(kind: str) -> dict[str, str]:
    """Name -> `module:attribute` of all entries of a kind ("objective", "model" or "data set"), other packages' too.

    Raises BadInput where another package takes a name that is taken.
    """
    own, group = _KINDS[kind]
    found = dict(own)
    for point in _points(group):
        if found.setdefault(point.name, point.value) != point.value:
            raise BadInput(
                f"{_package(point)} registers the {kind} {point.name!r} as {point.value}, but that name is "
                f"{found[point.name]}; uninstall one of the two packages, or rename the entry"
            )
    return found


def packages(kind: str) -> dict[str, str]:
    """Name -> the package that registers it, for the entries of a kind that are not ours."""
    own, group = _KINDS[kind]
    return {point.name: point.dist.name if point.dist else "?" for point in _points(group) if point.name not in own}


def resolve(kind: str, name: str) -> Any:
    """Import the entry `name` of a kind, a class or function.

    Raises BadInput with the nearest name if there is none, and where another package's entry cannot be imported.
    """
    known = entries(kind)
    if name not in known:
        raise nearest(kind, name, known)
    own, group = _KINDS[kind]
    if name in own:
        return pkgutil.resolve_name(known[name])
    source = f"the {kind} {name!r} of {next(_package(point) for point in _points(group) if point.name == name)}"
    try:
        found = pkgutil.resolve_name(known[name])
    except Exception as error:  # another package's module may fail in any way
        raise BadInput(f"{source}, {known[name]}, does not import: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise BadInput(f"{source}, {known[name]}, is a {type(found).__name__}; a class or a function is needed")
    return found


def files(kind: str) -> dict[str, Path]:
    """Name -> YAML file of all files of a kind ("recipe" or "protocol"), shipped ones and other packages' recipes."""
    folder = next((folder for folder in _FOLDERS[kind] if folder.is_dir()), None)
    if folder is None:
        raise BadInput(f"the installed package lacks its {kind} files; reinstall atent-ext")
    found = _yaml(folder)
    for point in _points("atent_ext.recipes") if kind == "recipe" else ():
        for name, path in _yaml(_package_folder(point)).items():
            if found.setdefault(name, path) != path and not name.startswith("_"):
                raise BadInput(
                    f"{_package(point)} brings a recipe {name!r}, but {found[name]} has that name; rename it"
                )
    return found


def _points(group: str) -> Iterator[EntryPoint]:
    # A package that is installed twice (a wheel and a checkout on the path) says everything twice.
    yield from sorted(set(entry_points(group=group)), key=lambda point: (point.name, point.value))


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name!r}" if point.dist else "another package"


def _package_folder(point: EntryPoint) -> Path:
    source = f"{_package(point)} registers recipes in {point.value!r}"
    try:
        spec = importlib.util.find_spec(point.value)
    except Exception as error:  # finding a.b imports a, which may fail in any way
        raise BadInput(f"{source}, which does not import: {type(error).__name__}: {error}") from error
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"{source}, which is no package; reinstall it")
    return Path(next(iter(spec.submodule_search_locations)))


def _yaml(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}
