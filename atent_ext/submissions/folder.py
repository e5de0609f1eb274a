"""Submissions: an untrusted folder of weights and card.yaml, read without running any code in it.

model.safetensors   the weights; or one .pt or .pth that holds a state dict      card.yaml   what is claimed about them
model.pt2           an exported program instead, whose card names no architecture
recipe.yaml         how they were trained (may be left out)
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from atent_ext.core.errors import AtentError, BadInput
from atent_ext.core.model_state import seeded
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report, Result
from atent_ext.models import networks
from atent_ext.models.wrappers import Normalised
from atent_ext.storage import files, state_dicts, untrusted, untrusted_program
from atent_ext.submissions import cards
from atent_ext.submissions.cards import Claim, Normalisation, Submission
from atent_ext.training import recipes
from atent_ext.training.recipes import Recipe
from atent_ext.training.run_folder import RunFolder

_WEIGHTS = 4 * 2**30
_RECIPE = 100_000
_KINDS = (".safetensors", ".pt", ".pth", ".pt2")
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
    notes: what was converted or ignored, as text. recipe: that of recipe.yaml, None if there is no such file.
    """

    submission: Submission
    network: nn.Module
    weights: Path
    sha256: str
    bytes: int
    parameters: int
    notes: tuple[str, ...]
    recipe: Recipe | None = None


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
        notes.append(f"the recipe starts from {recipe.init_from[:100]!r}, which is not looked at")
    network = filled(submission, content, weights, notes, root)
    return Opened(
        submission,
        network,
        weights,
        hashlib.sha256(content).hexdigest(),
        len(content),
        sum(parameter.numel() for parameter in network.parameters()),
        tuple(notes),
        recipe,
    )


def filled(
    submission: Submission, content: bytes, weights: Path, notes: list[str], root: Path | None = None
) -> nn.Module:
    """The submission's network with the weights loaded, as `Opened.network`.

    content: the bytes of the file `weights`, whose path errors name. notes: what was converted or ignored is appended.
    root: as in `read`. Raises BadInput for weights that do not fit, and what `read` raises for the architecture.
    """
    if weights.suffix == ".pt2":
        return _program(submission, content, weights, notes)
    if submission.architecture.name == cards.PROGRAM:
        message = f"card.yaml names no architecture, and {weights.name} holds no program but weights; "
        message += "name the architecture, or send a program: atent export RUN --to pt2 --out model.pt2"
        raise BadInput(message, code="missing", field="architecture")
    network, channels = _network(submission, root)
    state = state_dicts.unwrap(files.parse_weights(content, weights), weights, notes)
    names = network.state_dict().keys()
    state = _without_normalisation(state, names, submission.normalisation, weights, notes)
    state = state_dicts.rename(state, names, notes)
    state_dicts.fill(network, state, weights, notes)
    return _normalised(network, submission.normalisation, channels).eval()


def shape(dataset: str, root: Path | None = None) -> tuple[int, tuple[int, int, int]]:
    """The number of classes and the image shape (C, H, W) of a data set; data sets that are not ours are loaded.

    Raises BadInput for an unknown name, and for another package's data set that is not in `root`.
    """
    if dataset in _SHAPES:
        classes, channels, side = _SHAPES[dataset]
        return classes, (channels, side, side)
    images = datasets.load(dataset, root)
    channels, height, width = images.test.images.shape[1:]
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
    _valid(written | {"name": name or "any", "architecture": {"name": "any"}, "dataset": "any", "threat": _ANY})
    folder = RunFolder(run)
    recipe = folder.recipe()
    if not folder.weights.is_file():
        message = f"{run} holds no weights yet: there is no {folder.weights.name} in it; finish the training"
        raise BadInput(message, code="missing", field="run")
    weights = folder.weights.read_bytes()
    fields = written | {"name": name or recipe.name}
    submission = _submission(recipe, fields | {"claims": [] if report is None else _claims(report, recipe, weights)})
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"{out} is there already; name a new folder", code="exists", field="out")
    out.mkdir(parents=True, exist_ok=True)
    files.write(out / "model.safetensors", weights)
    files.write(out / "recipe.yaml", recipes.dump(recipe))
    cards.write_submission(submission, out / "card.yaml")
    return out


# ---- reading


def _weights_file(folder: Path, files: list[Path]) -> Path:
    weights = [path for path in files if path.suffix.lower() in _KINDS]
    if not weights:
        message = f"there is no weights file in {folder}; put model.safetensors there, or one .pt or .pth"
        raise BadInput(message, code="missing", field="weights")
    if len(weights) > 1:
        names = ", ".join(repr(str(path.relative_to(folder))) for path in weights[:5])
        message = f"{folder} has {len(weights)} weights files ({names}); leave one of them"
        raise BadInput(message, code="conflict", field="weights")
    if weights[0].parent != folder or weights[0].suffix not in _KINDS:
        name = str(weights[0].relative_to(folder))
        message = f"the weights lie in {name!r}; put them into {folder} itself, as model.safetensors, .pt or .pth"
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


def _network(submission: Submission, root: Path | None) -> tuple[nn.Module, int]:
    """The card's network with fresh weights, and the number of image channels."""
    classes, (channels, height, width) = shape(submission.dataset, root)
    architecture, blank = submission.architecture, torch.zeros(1, channels, height, width)
    for argument in sorted({"classes", "channels"} & architecture.arguments.keys()):
        name = f"architecture.arguments.{argument}"
        message = f"{name} is decided by the data set; remove it from card.yaml"
        raise BadInput(message, code="conflict", field=name)
    try:
        with seeded(0):  # the fresh weights are replaced, and the caller's random state stays as it is
            return networks.build_for(architecture.name, blank, classes, **architecture.arguments), channels
    except AtentError:
        raise
    except Exception as error:  # another library's network may fail in any way on a value that it does not take
        message = f"architecture {architecture.name!r} does not take {architecture.arguments!r}"
        message += f" ({untrusted.line(error)}); correct it in card.yaml"
        raise BadInput(message, code="bad-value", field="architecture.arguments") from None


def _program(submission: Submission, content: bytes, path: Path, notes: list[str]) -> nn.Module:
    """The network of an exported program, behind the card's normalisation."""
    if submission.architecture.name != cards.PROGRAM:
        message = f"card.yaml names the architecture {submission.architecture.name!r}, and {path.name} holds its own; "
        raise BadInput(f"{message}remove one of them", code="conflict", field="architecture")
    program = untrusted_program.read(content, path)
    known = _SHAPES.get(submission.dataset)
    if known and program.shape != (known[1], known[2], known[2]):
        message = f"{path} takes images {program.shape}, and those of {submission.dataset} are {known[1:]}"
        raise BadInput(f"{message}; name its data set in card.yaml", code="bad-shape", field="dataset")
    notes.extend(program.notes)
    return _normalised(program.network, submission.normalisation, program.shape[0]).eval()


def _normalised(network: nn.Module, normalisation: Normalisation | None, channels: int) -> nn.Module:
    if normalisation is None:
        return network
    if len(normalisation.mean) != channels:
        message = f"normalisation has {len(normalisation.mean)} means, and the images have {channels} channels; "
        message += "give one mean and one std per channel"
        raise BadInput(message, code="bad-shape", field="normalisation")
    return Normalised(network, normalisation.mean, normalisation.std)


def _without_normalisation(
    state: dict[str, Tensor],
    expected: Collection[str],
    card: Normalisation | None,
    path: Path,
    notes: list[str],
) -> dict[str, Tensor]:
    """`state` without the mean and std of a normalising wrapper. Raises BadInput where they differ from the card's."""
    usual = {"mean", "std", "mu", "sigma"} - {_last_part(name) for name in expected}
    stored = {name: tensor for name, tensor in state.items() if _last_part(name) in usual}
    for name, tensor in stored.items():
        claimed = () if card is None else card.mean if _last_part(name) in ("mean", "mu") else card.std
        if not _equal(tensor, claimed):
            values = f"of shape {tuple(tensor.shape)}"
            if 0 < tensor.numel() <= 16 and not tensor.is_complex():
                values = ", ".join(f"{float(value):.4g}" for value in tensor.flatten())
            message = f"{path} holds a normalisation, {name[:100]!r} = ({values}), and the card says "
            message += f"{claimed or 'none'}; put mean and std under normalisation in card.yaml"
            raise BadInput(message, code="conflict", field="normalisation")
    if stored:
        notes.append(f"the normalisation stored as {', '.join(map(repr, stored))} is that of the card")
    return {name: tensor for name, tensor in state.items() if name not in stored}


def _equal(stored: Tensor, claimed: Sequence[float]) -> bool:
    if stored.is_complex() or not 0 < stored.numel() == len(claimed):
        return False
    return bool(torch.allclose(stored.flatten().double(), torch.tensor(claimed, dtype=torch.float64), atol=1e-4))


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


# ---- writing


def _submission(recipe: Recipe, fields: Mapping[str, Any]) -> Submission:
    start = f" Started from {Path(recipe.init_from).name}." if recipe.init_from else ""
    training = f"{recipe.description}{start} Recipe: {recipe.name}."[:2000]
    known = {"architecture": recipe.model, "dataset": recipe.dataset, "threat": recipe.threat, "training": training}
    return _valid({**known, **fields})


def _valid(fields: Mapping[str, Any]) -> Submission:
    try:
        return Submission(**fields)
    except ValidationError as error:
        message = f"the card cannot be written: {cards.explain(error)}"
        raise BadInput(message, code="bad-value", field=cards.first_field(error)) from None


def _claims(path: Path, recipe: Recipe, weights: bytes) -> list[Claim]:
    """Claims from a report of these weights: clean accuracy and the last attack or worst case."""
    report = Report.load(path)
    if report.weights_sha256 != hashlib.sha256(weights).hexdigest():
        message = f"{path} is a report of other weights; score the run anew with `atent eval`"
        raise BadInput(message, code="other-content", field="report")
    if report.part != datasets.TEST:
        message = f"{path} is a report on images {report.split}; claims are of test images, score them with "
        message += "`atent eval`"
        raise BadInput(message, code="other-content", field="report")
    if report.threat != recipe.threat:
        message = f"{path} is a report under {report.threat}, and the run's threat model is {recipe.threat}"
        raise BadInput(message, code="other-content", field="report")
    source = f"{path.name}: {report.split}"
    attacks = ", ".join(result.attack for result in report.attacks)
    claims = [
        Claim(what="clean", percent=_percent(result), source=source)
        for result in report.results
        if result.kind == "clean"
    ]
    for result in [result for result in report.results if result.kind != "clean"][-1:]:
        attack = f"worst case of {attacks}" if result.kind == "worst_case" else result.attack
        claims.append(Claim(what="robust", percent=_percent(result), attack=attack, source=source))
    return claims


def _percent(result: Result) -> float:
    return round(100 * result.accuracy, 4)
