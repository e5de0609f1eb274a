"""Looks up objectives, attacks, models and data sets by name, and the files of recipes, protocols and cards.

Listing imports nothing heavy: an entry is the text `module:attribute`, which is imported only by `resolve`. Other
packages register entries under the entry-point groups `atent_ext.objectives`, `atent_ext.attacks`, `atent_ext.models`
and `atent_ext.datasets` (name = "module:attribute"), and folders of YAML files under `atent_ext.recipes` and
`atent_ext.protocols` (any name = "a.package"). An objective is a dataclass that implements `types.Objective`, an attack
a subclass of `attacks.AttackSpec`. Models are called with `classes` and `channels`, data sets with (root, download).
"""

import difflib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from atent_ext.core.errors import BadInput

OBJECTIVES: Mapping[str, str] = {
    "sgd": "atent_ext.objectives:Standard",
    "pgd-at": "atent_ext.objectives:PGDAT",
    "trades": "atent_ext.objectives:TRADES",
    "mart": "atent_ext.objectives:MART",
    "mma": "atent_ext.objectives:MMA",
    "atent": "atent_ext.objectives:ATENT",
    "desgd": "atent_ext.objectives:DESGD",
    "ibp": "atent_ext.objectives:IBP",
    "gaussian-noise": "atent_ext.objectives:GaussianNoise",
    "smooth-adv": "atent_ext.objectives:SmoothAdv",
    "smooth-trades": "atent_ext.objectives:SmoothTRADES",
}

ATTACKS: Mapping[str, str] = {
    "clean": "atent_ext.attacks.specs.clean:CleanSpec",
    "fgsm": "atent_ext.attacks.specs.gradient:FGSMSpec",
    "ifgsm": "atent_ext.attacks.specs.gradient:IFGSMSpec",
    "pgd": "atent_ext.attacks.specs.gradient:PGDSpec",
    "atent": "atent_ext.attacks.specs.gradient:ATENTSpec",
    "entropy": "atent_ext.attacks.specs.entropy:EntropySpec",
    "bpda": "atent_ext.attacks.specs.bpda:BPDASpec",
    "malt": "atent_ext.attacks.specs.malt:MALTSpec",
    "square": "atent_ext.attacks.specs.square:SquareSpec",
    "cascade": "atent_ext.attacks.specs.cascade:CascadeSpec",
    "cw": "atent_ext.attacks.specs.minimal:CarliniWagnerSpec",
    "deepfool": "atent_ext.attacks.specs.minimal:DeepFoolSpec",
    "autoattack": "atent_ext.attacks.specs.autoattack:AutoAttackSpec",
}

MODELS: Mapping[str, str] = {
    "digits-cnn": "atent_ext.models.networks:DigitsCNN",
    "lenet5-v1": "atent_ext.models.networks:LeNet5V1",
    "small-cnn": "atent_ext.models.networks:SmallCNN",
    "lenet5-madry": "atent_ext.models.libraries:lenet5_madry",
    "lenet5-advertorch": "atent_ext.models.libraries:lenet5_advertorch",
    "resnet-18": "atent_ext.models.libraries:resnet18",
    "resnet-18-pyautoattack": "atent_ext.models.libraries:resnet18_pyautoattack",
    "resnet-20": "atent_ext.models.networks:ResNet20",
    "resnet-50": "atent_ext.models.libraries:resnet50",
    "preact-resnet-18": "atent_ext.models.libraries:preact_resnet18",
    "wrn-28-10": "atent_ext.models.libraries:wrn28_10",
    "wrn-34-10": "atent_ext.models.libraries:wrn34_10",
    "wrn-70-16": "atent_ext.models.libraries:wrn70_16",
    "contrast-cnn": "atent_ext.models.contrast:ContrastCNN",
    "wrn-normfree": "atent_ext.models.normfree:NormFreeWideResNet",
    "vgg-11": "atent_ext.models.libraries:vgg11",
    "convnext": "atent_ext.models.libraries:convnext",
    "vit": "atent_ext.models.libraries:vit",
}

DATASETS: Mapping[str, str] = {
    "digits": "atent_ext.data.datasets:digits",
    "mnist": "atent_ext.data.datasets:mnist",
    "fashion-mnist": "atent_ext.data.datasets:fashion_mnist",
    "cifar10": "atent_ext.data.datasets:cifar10",
    "cifar100": "atent_ext.data.datasets:cifar100",
    "imagenet": "atent_ext.data.imagenet:imagenet",
}

_NUMBER = re.compile("[0-9]+")
_KINDS: Mapping[str, tuple[Mapping[str, str], str]] = {
    "objective": (OBJECTIVES, "atent_ext.objectives"),
    "attack": (ATTACKS, "atent_ext.attacks"),
    "model": (MODELS, "atent_ext.models"),
    "data set": (DATASETS, "atent_ext.datasets"),
}

_PACKAGES: Mapping[str, str] = {"recipe": "atent_ext.recipes", "protocol": "atent_ext.protocols"}
"""Entry-point groups under which other packages register folders of YAML files."""

_HERE = Path(__file__).resolve().parent.parent  # the folder of atent_ext
# The folder of each kind of file in an installed wheel, and in a checkout.
_FOLDERS = {
    "recipe": (_HERE / "_registry" / "recipes", _HERE.parent / "registry" / "recipes"),
    "protocol": (_HERE / "_protocols", _HERE.parent / "eval" / "protocols"),
    "card": (_HERE / "_registry" / "cards", _HERE.parent / "registry" / "cards"),
    "weights": (_HERE / "_registry" / "weights", _HERE.parent / "registry" / "weights"),
    "study": (_HERE / "_protocols" / "papers", _HERE.parent / "eval" / "protocols" / "papers"),
}


def nearest(kind: str, name: str, known: Iterable[str], field: str | None = None) -> BadInput:
    """The error for an unknown `name` of a `kind`: it suggests the closest known name (`hint`), else lists all of them.

    field: the argument that is wrong; None is `kind`.
    """
    names = sorted(known)
    remedy = hint(name, names) or f"known: {', '.join(names) or 'none'}"
    return BadInput(f"unknown {kind} {name!r}; {remedy}", code="unknown-name", field=field or kind)


def hint(name: str, known: Iterable[str]) -> str | None:
    """A question for the closest known name; None if none is close.

    A name of other numbers is not what was meant: wrn-28-10 is no misspelt wrn-34-10, and weights of the one do not fit
    the other. Then all names that differ from the closest one in their numbers alone are listed.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=5)
    if not close:
        return None
    family = [other for other in names if _NUMBER.sub("#", other) == _NUMBER.sub("#", close[0])]
    alike = [other for other in close if _digits(other) == _digits(name)] if _digits(name) else []
    if alike or (len(family) == 1 and not _digits(name)):
        return f"did you mean {(alike or family)[0]!r}?"
    return f"of its kind there {'is' if len(family) == 1 else 'are'} {', '.join(family)}"


def _digits(name: str) -> str:
    return "".join(_NUMBER.findall(name))


def entries(kind: str) -> dict[str, str]:
    """Name -> `module:attribute` of all entries of a kind: "objective", "attack", "model" or "data set".

    Entries of other packages are included; ours take precedence.
    """
    own, group = _KINDS[kind]
    known = dict(own)
    for point in _points(group):
        known.setdefault(point.name, point.value)
    return known


def packages(kind: str) -> dict[str, str]:
    """Name -> package, for entries of a kind (as in `entries`, or "recipe") that other packages register."""
    if kind == "recipe":
        return _recipe_packages()
    own, group = _KINDS[kind]
    return {point.name: point.dist.name if point.dist else "?" for point in _points(group) if point.name not in own}


def resolve(kind: str, name: str) -> Any:
    """Import the class or function that is registered as `name` of a kind (as in `entries`).

    Raises BadInput for an unknown name, for a name that two packages register, and for an entry of another package that
    cannot be imported or is not callable.
    """
    known = entries(kind)
    if name not in known:
        raise nearest(kind, name, known)
    own, group = _KINDS[kind]
    points = [point for point in _points(group) if point.name == name and point.value != own.get(name)]
    if len(points) > (name not in own):
        others = " and ".join(f"{_package(point)} ({point.value})" for point in points)
        ours = f", which is {own[name]}" if name in own else ""
        message = f"{others} registers the {kind} {name!r}{ours}; uninstall one of them, or rename the entry"
        raise BadInput(message, code="conflict", field=kind)
    if name in own:
        return pkgutil.resolve_name(own[name])
    source = f"the {kind} {name!r} of {_package(points[0])}, {known[name]}"
    try:
        entry = pkgutil.resolve_name(known[name])
    except Exception as error:  # another package's module may raise anything
        message = f"{source}, does not import: {type(error).__name__}: {error}"
        raise BadInput(message, code="unreadable", field=kind) from error
    if not callable(entry):
        message = f"{source}, is a {type(entry).__name__}; a class or a function is needed"
        raise BadInput(message, code="bad-type", field=kind)
    return entry


def files(kind: str) -> dict[str, Path]:
    """Name -> YAML file of a kind ("recipe", "protocol", "study"), ours and those of other packages.

    If several files have the same name, ours is used, else the first; `faults` reports it.
    """
    paths = _yaml(folder(kind))
    for point in _points(_PACKAGES[kind]) if kind in _PACKAGES else ():
        paths |= {name: path for name, path in _yaml(_package_folder(point)).items() if name not in paths}
    return paths


def folder(kind: str) -> Path:
    """The folder of this package's files of a kind: "recipe", "protocol", "study", "card" or "weights".

    Raises BadInput if the installed package lacks it.
    """
    path = next((folder for folder in _FOLDERS[kind] if folder.is_dir()), None)
    if path is None:
        message = f"the installed package lacks its {kind} files; reinstall atent-ext"
        raise BadInput(message, code="missing", field=kind)
    return path


def faults() -> list[str]:
    """Messages about unusable recipes and protocols that other packages register: missing folders, duplicate names."""
    return [fault for kind, group in _PACKAGES.items() for fault in _faults_of(kind, group)]


def _faults_of(kind: str, group: str) -> Iterator[str]:
    known = files(kind)
    for point in _points(group):
        folder = _package_folder(point)
        if not folder.is_dir():
            yield f"{_package(point)} registers {kind}s in {point.value!r}, which is no package; reinstall it"
        for name, path in _yaml(folder).items():
            if known[name] != path and not name.startswith("_"):
                yield f"{_package(point)} brings a {kind} {name!r}, but {known[name]} counts; rename it"


def _recipe_packages() -> dict[str, str]:
    known, packages = files("recipe"), dict[str, str]()
    for point in _points(_PACKAGES["recipe"]):
        package = point.dist.name if point.dist else "?"
        packages |= {name: package for name, path in _yaml(_package_folder(point)).items() if known[name] == path}
    return packages


def _points(group: str) -> tuple[EntryPoint, ...]:
    return _listed(group, tuple((folder, _changed(folder)) for folder in sys.path))


@lru_cache(maxsize=128)
def _listed(group: str, path: tuple[tuple[str, int | None], ...]) -> tuple[EntryPoint, ...]:
    """The entry points of a group; `path` is that of imports, with the times at which a package came or went."""
    # A package that is installed twice (a wheel and a checkout on the path) lists its entry points twice.
    return tuple(sorted(set(entry_points(group=group)), key=lambda point: (point.name, point.value)))


def _changed(folder: str) -> int | None:
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return None


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name!r}" if point.dist else "another package"


def _package_folder(point: EntryPoint) -> Path:
    """The folder of the package that the entry point names. It is located without importing the package."""
    top, *below = point.value.split(".")
    spec = importlib.util.find_spec(top)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0] if locations else top).joinpath(*below)


def _yaml(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}
