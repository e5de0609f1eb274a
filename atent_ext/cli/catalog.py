"""Lists of recipes, models, data sets, protocols and cards as plain data, read without importing torch.

An entry is a mapping with `name`. Radii are for images in [0, 1]; accuracies are in [0, 1].
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.training import recipe_files

Entry = dict[str, Any]
_FORMATS = {
    "folder:PATH": "a folder of images, train/CLASS/ and test/CLASS/, or val/CLASS/",
    "npz:FILE": "a NumPy archive with the arrays of both splits",
    "npy:PATH": "a folder of x_test.npy, y_test.npy, x_train.npy, y_train.npy",
    "hf-dataset:PATH": "a folder or a Parquet file of the library datasets",
}


def recipes() -> list[Entry]:
    """All recipes: dataset, threat, objective, model, description, package; `fault` instead if it cannot be used."""
    packages = registry.packages("recipe")
    return [
        {"name": name, **_recipe(name, fields), "package": packages.get(name)} for name, fields in recipe_files.every()
    ]


def _recipe(name: str, fields: dict[str, Any] | BadInput) -> Entry:
    if isinstance(fields, BadInput):
        return {"fault": str(fields)}
    about = {key: _listed(key, fields.get(key)) for key in ("dataset", "threat", "objective", "model", "description")}
    missing = [key for key, value in about.items() if value is None]
    return {"fault": f"recipe {name} lacks {', '.join(missing)}"} if missing else about


def _listed(key: str, value: Any) -> Any:
    """The listed value of a recipe's field, None if the field is not valid in a recipe."""
    if key in ("dataset", "description"):
        return value if isinstance(value, str) else None
    try:
        if key == "threat":
            return {"norm": str(value["norm"]), "eps": float(value["eps"])}  # PyYAML reads 1e-3 as a text
        return str(value["name"])
    except (LookupError, TypeError, ValueError):
        return None


def models() -> list[Entry]:
    """The networks that a recipe or `--model` can name: target (module:attribute), package."""
    return _registered("model")


def objectives() -> list[Entry]:
    """The training methods that a recipe can name: target (module:attribute), package."""
    return _registered("objective")


def datasets() -> list[Entry]:
    """The data sets that a recipe or `--dataset` can name: target (module:attribute or what is read), package."""
    formats = [{"name": name, "target": target, "package": None} for name, target in _FORMATS.items()]
    return [*_registered("data set"), *formats]


def _registered(kind: str) -> list[Entry]:
    packages = registry.packages(kind)
    known = registry.entries(kind)
    return [{"name": name, "target": target, "package": packages.get(name)} for name, target in known.items()]


def protocols() -> list[Entry]:
    """The protocols of `--protocol`: description, and the names of their attacks."""
    return [{"name": name, **_described(name)} for name in registry.files("protocol")]


def _described(name: str) -> Entry:
    try:
        fields = protocol(name)
        return {"description": fields["description"], "attacks": [spec["attack"] for spec in fields["attacks"]]}
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        message = f"{registry.files('protocol')[name]} is not a valid protocol; `atent show {name}` says more"
        return {"description": "", "attacks": [], "fault": message}


def protocol(name: str) -> Entry:
    """The fields of a protocol's file."""
    fields: Entry = yaml.safe_load(registry.files("protocol")[name].read_text(encoding="utf-8"))
    return fields


def attacks() -> list[Entry]:
    """The attacks that a protocol can name: target (module:attribute), package."""
    return _registered("attack")


def cards() -> list[Entry]:
    """All cards: recipe (None where the card names none), dataset, threat, clean, worst, images, loads, file."""
    return [_card(path) for path in _card_files()]


def zoo() -> list[Entry]:
    """The cards with local weights, under the names that `atent eval` and `atent_ext.load` take."""
    return [entry for entry in cards() if entry["loads"]]


def _card_files() -> list[Path]:
    return sorted(registry.folder("card").glob("*/*/*.json"), key=lambda path: (path.stem, path.parent))


def card(path: Path) -> Entry:
    """The content of a card's file, not validated. Raises BadInput for a file that is not JSON."""
    try:
        content: Entry = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not a card in JSON: {error}", code="unreadable", field="card") from None
    return content


def cards_of(name: str) -> list[Path]:
    """The files of a model's cards, one for each threat model."""
    return [path for path in _card_files() if path.stem == name]


def _card(path: Path) -> Entry:
    try:
        about = _measured(card(path))
    except (BadInput, LookupError, TypeError, AttributeError):
        about = {"fault": f"{path} is no card that was scored; `atent registry check` says what is wrong"}
    place = path.relative_to(registry.folder("card")).as_posix()
    return {"name": path.stem, **about, "loads": loads(path.stem), "file": place}


def _measured(content: Mapping[str, Any]) -> Entry:
    submission, results = content["submission"], content["report"]["results"]
    accuracy = {result["kind"]: result["accuracy"] for result in results}
    return {
        "recipe": recipe_of(content),
        "dataset": submission["dataset"],
        "threat": submission["threat"],
        "clean": accuracy["clean"],
        "worst": accuracy["worst_case"],
        "images": results[-1]["n"],
    }


def loads(name: str) -> bool:
    """Whether the weights of a model are in the registry on this machine."""
    return (registry.folder("weights") / f"{name}.safetensors").is_file()


def recipe_of(content: Mapping[str, Any]) -> str | None:
    """The recipe of a card: that of its report, or NAME of "Recipe: NAME." at the end of its `training` text."""
    recipe = (content["report"] or {}).get("recipe")
    if recipe:
        return str(recipe["name"])
    match = re.search(r"(?:^|\s)Recipe: (\S+)\.$", content["submission"].get("training", ""))
    return match[1] if match else None


KINDS: Mapping[str, tuple[Callable[[], list[Entry]], str]] = {
    "recipes": (recipes, "trainings: atent train NAME"),
    "models": (models, "networks, untrained: atent eval FILE --model NAME"),
    "datasets": (datasets, "data: atent eval FILE --dataset NAME"),
    "protocols": (protocols, "what is measured: atent eval --protocol NAME"),
    "objectives": (objectives, "training methods, in a recipe: objective.name"),
    "attacks": (attacks, "attacks, in a protocol: attack"),
    "zoo": (zoo, "trained models: atent eval NAME, atent_ext.load(NAME)"),
    "cards": (cards, "what was measured of models: atent show NAME"),
}
"""The kinds of `atent ls`: function that lists the entries, and what they are for."""


def names() -> Mapping[str, list[str]]:
    """The names that `atent show` accepts, by kind."""
    cards = [path.stem for path in _card_files()]
    return {"recipe": recipe_files.names(), "protocol": [*registry.files("protocol")], "card": cards}
