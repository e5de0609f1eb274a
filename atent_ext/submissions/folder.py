"""Submissions: an untrusted folder of weights and card.yaml, read without running any code in it.

model.safetensors   the weights, or a checkpoint of torch.save by any name      card.yaml   what is claimed about them
model.pt2           an exported program instead, whose card names no architecture
recipe.yaml         how they were trained (may be left out)
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from atent_ext.core.around import Around, refuse
from atent_ext.core.errors import AtentError, BadInput
from atent_ext.core.model_state import seeded
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report, Result
from atent_ext.models import networks, wrappers
from atent_ext.models import weights as weights_of
from atent_ext.storage import files, untrusted, untrusted_program
from atent_ext.storage.untrusted_weights import kind, looks_like_weights
from atent_ext.submissions import cards
from atent_ext.submissions.cards import Claim, Submission
from atent_ext.training import recipes
from atent_ext.training.recipes import Recipe
from atent_ext.training.run_folder import RunFolder

_WEIGHTS = 4 * 2**30
_RECIPE = 100_000
_KINDS = (".safetensors", ".pt", ".pth", ".pth.tar", ".pt.tar", ".ckpt", ".bin", ".pkl", ".pt2")
"""How the names of weights files end; other files are recognised by their first bytes."""
_ANY = {"norm": "Linf", "eps": 0.0}
"""The threat model of a card whose other fields are checked before the run is read."""
_SHAPES: Mapping[str, tuple[int, int, int]] = {
    "digits": (10, 1, 8),
    "mnist": (10, 1, 28),
    "fashion-mnist": (10, 1, 28),
    "cifar10": (10, 3, 32),
    "cifar100": (100, 3, 32),
}
"""Classes, channels and side of our data sets, so that a submission can be read without the data."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A submission that was read.

    network: with the weights loaded, on the CPU, in eval mode; takes images in [0, 1], a `Normalised` if the card has a
    normalisation. weights: the file, of `bytes` bytes with the hash `sha256`. parameters: how many the network has.
    notes: what was guessed, converted or ignored, as text. recipe: that of recipe.yaml, None if there is no such file.
    key: the name of the weights that were read, where the file has several; else None.
    """

    submission: Submission
    network: nn.Module
    weights: Path
    sha256: str
    bytes: int
    parameters: int
    notes: tuple[str, ...]
    recipe: Recipe | None = None
    key: str | None = None


def read(folder: Path, root: Path | None = None, *, most: int = _WEIGHTS) -> Opened:
    """Read the submission in `folder`; weights of more than `most` bytes are refused.

    root: the folder of the data sets; a data set is loaded only if it is not ours, for its classes and image shape.
    Raises BadInput for an invalid folder, card, recipe or weights file; MissingExtra if the network is from a library
    that is not installed.
    """
    files = untrusted.files(folder)
    weights = _weights_file(folder, files)
    if folder / "card.yaml" not in files:
        message = f"there is no card.yaml in {folder}; `atent submission new RUN --out DIR` writes one"
        raise BadInput(message, code="missing", field="card.yaml")
    submission = cards.read_submission(folder / "card.yaml")
    recipe = _read_recipe(folder / "recipe.yaml") if folder / "recipe.yaml" in files else None
    content = untrusted.read(weights, most)
    notes: list[str] = []
    if recipe is not None and recipe.init_from is not None:
        notes.append(f"the recipe starts from {recipe.init_from[:100]!r}, which is not read")
    return replace(opened(submission, content, weights, notes, root), recipe=recipe)


def opened(submission: Submission, content: bytes, weights: Path, notes: list[str], root: Path | None = None) -> Opened:
    """The submission whose weights file `weights` holds these bytes. Arguments and errors are those of `filled`."""
    network, key = filled(submission, content, weights, notes, root)
    return Opened(
        submission,
        network,
        weights,
        hashlib.sha256(content).hexdigest(),
        len(content),
        sum(parameter.numel() for parameter in network.parameters()),
        tuple(notes),
        key=key,
    )


def filled(
    submission: Submission, content: bytes, weights: Path, notes: list[str], root: Path | None = None
) -> tuple[nn.Module, str | None]:
    """The submission's network with the weights loaded, as `Opened.network`, and their name, as `Opened.key`.

    content: the bytes of the file `weights`, whose path errors name. notes: what was converted or ignored is appended.
    root: as in `read`. Raises BadInput for weights that do not fit, and what `read` raises for the architecture.
    """
    if weights.suffix == ".pt2":
        return _program(submission, content, weights, notes), None
    if submission.architecture.name == cards.PROGRAM:
        message = f"card.yaml names no architecture, and {weights.name} holds no program but weights; "
        message += "name the architecture, or send a program: atent export RUN --to pt2 --out model.pt2"
        raise BadInput(message, code="missing", field="architecture")
    network, images = _network(submission, root)
    refuse(Around(output=submission.output), "card.yaml names an output, and the architecture has one", ["output"])
    stated, key = submission.normalisation, submission.weights_key
    key = weights_of.fill(network, content, weights, notes, key=key, normalisation=stated)
    return _behind(network, submission, images, notes), key


def _behind(network: nn.Module, submission: Submission, shape: Sequence[int], notes: list[str]) -> nn.Module:
    """The network behind what the card states, in eval mode. shape: of the images that are attacked."""
    placed, said = wrappers.behind(network.eval(), submission.around, shape)
    notes += said if submission.resize is None else (f"test images are {submission.resize}, and eps is of those", *said)
    return placed


def shape(dataset: str, root: Path | None = None) -> tuple[int, tuple[int, int, int]]:
    """The number of classes and the image shape (C, H, W) of a data set; data sets that are not ours are loaded.

    Raises BadInput for an unknown name, and for another package's data set that is not in `root`.
    """
    if dataset in _SHAPES:
        classes, channels, side = _SHAPES[dataset]
        return classes, (channels, side, side)
    images = datasets.load(dataset, root)
    channels, height, width = images.test.shape
    return len(images.classes), (channels, height, width)


def new(
    run: Path,
    out: Path,
    *,
    authors: str,
    license: str,
    link: str = "",
    venue: str = "Unpublished",
    name: str | None = None,
    report: Path | None = None,
) -> Path:
    """Write the submission of a training run to the folder `out`, and return `out`.

    name: default the recipe's. report: the file of `atent eval RUN`; its accuracies become the claims. Raises BadInput
    if `run` holds no trained model, `out` exists and is not empty, a field is not valid in a card, or the report is of
    other weights, other images or another threat model.
    """
    written = {"authors": authors, "license": license, "link": link, "venue": venue}
    check(written, name)
    folder = RunFolder(run)
    recipe = folder.recipe()
    if not folder.weights.is_file():
        message = f"{run} holds no weights yet: there is no {folder.weights.name} in it; finish the training"
        raise BadInput(message, code="missing", field="run")
    weights = folder.weights.read_bytes()
    fields = written | {"name": name or recipe.name}
    digest = hashlib.sha256(weights).hexdigest()
    claimed = [] if report is None else claims(report, recipe.threat, lambda found: found.weights_sha256 == digest)
    submission = _submission(recipe, fields | {"claims": claimed})
    write(submission, weights, "model.safetensors", out)
    files.write(out / "recipe.yaml", recipes.dump(recipe))
    return out


def write(submission: Submission, weights: bytes, file: str, out: Path) -> None:
    """Write a submission to the new folder `out`. Raises BadInput as `check_new`."""
    check_new(out)
    out.mkdir(parents=True, exist_ok=True)
    files.write(out / file, weights)
    cards.write_submission(submission, out / "card.yaml")


def check(written: Mapping[str, str], name: str | None) -> None:
    """Raise BadInput for texts that a card cannot have, before anything is read."""
    valid({**written, "name": name or "any", "architecture": {"name": "any"}, "dataset": "any", "threat": _ANY})


def check_new(out: Path) -> None:
    """Raise BadInput for a path where there is something else than an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"{out} is there already; name a new folder", code="exists", field="out")


# ---- reading


def _weights_file(folder: Path, files: list[Path]) -> Path:
    """The one weights file, by its name or by its first bytes."""
    others = [path for path in files if path not in (folder / "card.yaml", folder / "recipe.yaml")]
    weights = [path for path in others if path.name.lower().endswith(_KINDS)]
    weights += [path for path in others if path not in weights and looks_like_weights(untrusted.start(path, 512))]
    if not weights:
        kinds = [
            f"{str(path.relative_to(folder))[:100]!r} is {kind(untrusted.start(path, 512), path)}"
            for path in others[:5]
        ]
        found = f" ({'; '.join(kinds)})" if kinds else ""
        message = f"there is no weights file in {folder}{found}; put model.safetensors there, or a file of torch.save"
        raise BadInput(message, code="missing", field="weights")
    if len(weights) > 1:
        names = ", ".join(repr(str(path.relative_to(folder))) for path in sorted(weights)[:5])
        message = f"{folder} has {len(weights)} weights files ({names}); leave one of them"
        raise BadInput(message, code="conflict", field="weights")
    if weights[0].parent != folder:
        name = str(weights[0].relative_to(folder))
        message = f"the weights lie in {name!r}; put them into {folder} itself"
        raise BadInput(message, code="bad-value", field="weights")
    return weights[0]


def _read_recipe(path: Path) -> Recipe:
    """The recipe without a base. Files that it names, such as `init_from`, are never opened."""
    raw = untrusted.plain_yaml(untrusted.read(path, _RECIPE), path)
    if not isinstance(raw, dict):
        message = f"{path} holds no fields; a recipe is a mapping of names to values"
        raise BadInput(message, code="bad-type", field="recipe")
    if "base" in raw:
        base = raw["base"] if isinstance(raw["base"], str) else type(raw["base"]).__name__
        message = f"{path} has a base, {base[:100]!r}; no other file is followed, write the recipe whole"
        raise BadInput(message, code="unsafe", field="base")
    try:
        return recipes.parse(raw, str(path))
    except AtentError:
        raise
    except Exception as error:  # an objective of another package may fail in any way on a bad value
        message = f"{path} is no recipe: {untrusted.line(error)}"
        raise BadInput(message, code="bad-value", field="recipe") from None


def _network(submission: Submission, root: Path | None) -> tuple[nn.Module, tuple[int, ...]]:
    """The card's network with fresh weights, and the shape of the images that are attacked."""
    classes, own = shape(submission.dataset, root)
    images, inside = _resized(submission, own)
    architecture, blank = submission.architecture, torch.zeros(1, *inside)
    for argument in sorted({"classes", "channels"} & architecture.arguments.keys()):
        name = f"architecture.arguments.{argument}"
        message = f"{name} is decided by the data set; remove it from card.yaml"
        raise BadInput(message, code="conflict", field=name)
    try:
        with seeded(0):  # the fresh weights are replaced, and the caller's random state stays as it is
            return networks.build_for(architecture.name, blank, classes, **architecture.arguments), images
    except AtentError:
        raise
    except Exception as error:  # another library's network may fail in any way on a value that it does not take
        message = f"architecture {architecture.name!r} does not take {architecture.arguments!r}"
        message += f" ({untrusted.line(error)}); correct it in card.yaml"
        raise BadInput(message, code="bad-value", field="architecture.arguments") from None


def _resized(submission: Submission, images: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the images that are attacked and of those that the network gets. images: the data set's shape."""
    outside = images if submission.resize is None else submission.resize.shape(images)
    return outside, outside if submission.resize_inside is None else submission.resize_inside.shape(outside)


def _program(submission: Submission, content: bytes, path: Path, notes: list[str]) -> nn.Module:
    """The network of an exported program, behind the card's normalisation."""
    if submission.architecture.name != cards.PROGRAM:
        message = f"card.yaml names the architecture {submission.architecture.name!r}, and {path.name} holds its own; "
        raise BadInput(f"{message}remove one of them", code="conflict", field="architecture")
    if submission.weights_key is not None:
        message = (
            f"card.yaml has weights_key {submission.weights_key[:100]!r}, and a program holds one network; remove it"
        )
        raise BadInput(message, code="unused", field="weights_key")
    program = untrusted_program.read(content, path, submission.output)
    notes.extend(program.notes)
    if submission.dataset not in _SHAPES:
        refuse(submission.around, "card.yaml is for data that is not ours", ["resize_inside"])
        return _behind(program.network, submission, program.shape, notes)
    images, inside = _resized(submission, shape(submission.dataset)[1])
    if program.shape != inside:
        message = f"{path} takes images {program.shape}, and those of {submission.dataset} are {inside}"
        raise BadInput(f"{message}; name its data set in card.yaml", code="bad-shape", field="dataset")
    return _behind(program.network, submission, images, notes)


# ---- writing


def _submission(recipe: Recipe, fields: Mapping[str, Any]) -> Submission:
    start = f" Started from {Path(recipe.init_from).name}." if recipe.init_from else ""
    training = f"{recipe.description}{start} Recipe: {recipe.name}."[:2000]
    known = {"architecture": recipe.model, "dataset": recipe.dataset, "threat": recipe.threat, "training": training}
    return valid({**known, **fields})


def valid(fields: Mapping[str, Any]) -> Submission:
    """A submission of these fields. Raises BadInput for fields that a card cannot have."""
    try:
        return Submission(**fields)
    except ValidationError as error:
        message = f"the card cannot be written: {cards.explain(error)}"
        raise BadInput(message, code="bad-value", field=cards.first_field(error)) from None


def claims(path: Path, threat: Threat, same: Callable[[Report], bool]) -> list[Claim]:
    """Claims from a report: clean accuracy and the last attack or worst case. same: whether it is of these weights.

    Raises BadInput for a report of other weights, of held-out images, or under another threat model.
    """
    report = Report.load(path)
    if not same(report):
        message = f"{path} is a report of other weights; score the run anew with `atent eval`"
        raise BadInput(message, code="other-content", field="report")
    if report.part != datasets.TEST:
        message = f"{path} is a report on images {report.split}; claims are of test images, score them with "
        message += "`atent eval`"
        raise BadInput(message, code="other-content", field="report")
    if report.threat != threat:
        message = f"{path} is a report under {report.threat}, and the run's threat model is {threat}"
        raise BadInput(message, code="other-content", field="report")
    source = f"{path.name}: {report.split}"
    attacks = ", ".join(result.attack for result in report.attacks)
    found = [
        Claim(what="clean", percent=_percent(result), source=source)
        for result in report.results
        if result.kind == "clean"
    ]
    for result in [result for result in report.results if result.kind != "clean"][-1:]:
        attack = f"worst case of {attacks}" if result.kind == "worst_case" else result.attack
        found.append(Claim(what="robust", percent=_percent(result), attack=attack, source=source))
    return found


def _percent(result: Result) -> float:
    return round(100 * result.accuracy, 4)
