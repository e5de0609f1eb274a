"""Cards: what a submitter claims about a checkpoint (`card.yaml`), and what was measured (registry/cards/**/*.json)."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator

from atent_ext.core.around import Around, Resizing
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import (
    Growing,
    Network,
    Normalisation,
    Readable,
    Section,
    StatedNormalisation,
    Threat,
    readable,
)
from atent_ext.evaluation.report import Report
from atent_ext.models.wrappers import described
from atent_ext.storage import files, untrusted

Kind = TypeVar("Kind", bound=Section)
PROGRAM = "exported-program"
"""What a card has for an architecture where the weights file is a program, which holds its network."""
_LARGEST = 100_000
"""Bytes of a card.yaml, at most."""
_LARGEST_CARD = 50_000_000
"""Bytes of a card of the registry, at most; its report has a flag per image and attack."""


Percent = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(readable)]
Paragraph = Annotated[str, Field(max_length=2000), AfterValidator(readable)]


_MOST = 1_000_000
_WIDEST = 1000.0
"""No ℓ2 distance between images of a million pixels in [0, 1] is larger."""
_DEEPEST = 20
"""Levels of nested lists and mappings in a card, at most."""


def _plain(value: Any) -> bool:
    """Whether a value may be an argument of a network: None, a printable text, or a number that needs little memory."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return len(value) <= 100 and value.isprintable()
    return value is None or (isinstance(value, int) and abs(value) <= _MOST)


class Claim(Section):
    """A claimed accuracy in percent, on clean images or under attack. attack, source: free text.

    A robust accuracy is a claim about every attack within eps, whatever attack measured it: it is compared with the
    worst case over all attacks that were run.
    """

    what: Literal["clean", "robust"]
    percent: Percent
    attack: Paragraph = ""
    source: Paragraph = ""


class Submission(Growing):
    """The fields of a `card.yaml`.

    architecture: a network of the registry with its arguments, which are plain values; it is left out for a program
    (.pt2), and is then `PROGRAM`. dataset: a data set of the
    registry, never a path. threat: norm and eps for images in [0, 1]; eps may be a fraction such as 8/255. extra_data:
    whether training used other data than the training split. random: whether the outputs are declared random, so that
    AutoAttack's "rand" version scores the network. training: how it was trained, as text. link: http:// or https://.
    normalisation: of images before the network, or "none"; left out, it says nothing, and a file that speaks of one is
    refused. weights_key: the name of the weights in a file that holds several networks, such as "ema.shadow". output:
    the position of the logits among the results of a program. resize: of the test images, before the threat model,
    which the leaderboard does not take. resize_inside: by the network.
    """

    added: ClassVar[frozenset[str]] = frozenset({"output", "resize", "resize_inside"})

    name: Annotated[str, Field(min_length=1, max_length=100)]
    authors: Text
    link: Paragraph = ""
    venue: Paragraph = "Unpublished"
    architecture: Network = Network(name=PROGRAM)
    dataset: Text
    threat: Threat
    extra_data: bool = False
    training: Paragraph = ""
    normalisation: StatedNormalisation = None
    weights_key: Annotated[str, Field(min_length=1, max_length=300), AfterValidator(readable)] | None = None
    output: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(readable)] | None = None
    resize: Resizing | None = None
    resize_inside: Resizing | None = None
    random: bool = False
    license: Text
    claims: Annotated[tuple[Claim, ...], Field(max_length=20)] = ()

    @property
    def scale(self) -> Normalisation | None:
        """The normalisation in front of the network; None if there is none, stated or not."""
        return self.normalisation if isinstance(self.normalisation, Normalisation) else None

    @property
    def around(self) -> Around:
        """What the card states around the network."""
        return Around(**{name: getattr(self, name) for name in Around.model_fields})

    def described(self, key: str | None) -> str:
        """The network as text. key: as in `wrappers.described`."""
        return described(self.architecture.name, self.normalisation, key, self.output, self.resize_inside)

    @field_validator("name")
    @classmethod
    def _can_be_a_file(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("letters, digits, dots, dashes and underscores only, the first a letter or digit")
        return name

    @field_validator("link")
    @classmethod
    def _is_an_address(cls, link: str) -> str:
        if link and not re.fullmatch(r"https?://[^\s\"'<>`\\]+", link):
            raise ValueError("an address that starts with https:// is needed, without spaces and quotes")
        return link

    @field_validator("dataset")
    @classmethod
    def _is_no_path(cls, dataset: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", dataset):
            raise ValueError(f"{dataset!r} is no name of a data set; a card names no files and folders")
        return dataset

    @field_validator("threat", mode="before")
    @classmethod
    def _takes_fractions(cls, threat: Any) -> Any:
        """Convert a text such as "8/255", which is how YAML reads a fraction."""
        eps = threat.get("eps") if isinstance(threat, dict) else None
        parts = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*/\s*(\d{1,9})\s*", eps) if isinstance(eps, str) else None
        return threat | {"eps": float(parts[1]) / float(parts[2])} if parts and float(parts[2]) else threat

    @field_validator("threat")
    @classmethod
    def _is_in_units_of_the_box(cls, threat: Threat) -> Threat:
        if threat.norm == "L1":
            raise ValueError("norm is L1, which is for `atent eval`; cards are of Linf or L2")
        most = 1.0 if threat.norm == "Linf" else _WIDEST
        if threat.eps > most:
            raise ValueError(f"eps is {threat.eps:g}, beyond {most:g}; images lie in [0, 1]: write 8/255")
        return threat

    @field_validator("architecture")
    @classmethod
    def _has_plain_arguments(cls, network: Network) -> Network:
        readable(network.name)
        for argument, value in network.arguments.items():
            if not all(map(_plain, value if isinstance(value, list) else [value])):
                raise ValueError(f"argument {argument!r} is no plain value; numbers up to {_MOST:,} and words are")
        return network


class Check(Section):
    """A check of a network before it is scored. passed: None if it does not apply. said: the result as text."""

    name: str
    passed: bool | None
    said: Readable


class Sign(Section):
    """A sign of gradient masking. found: None if it was not tested. evidence: the figures, as text."""

    name: str
    found: bool | None
    evidence: Readable


class Verdict(Section):
    """A claim compared with the measurement. points: claimed minus measured; interval: the result's; all in percent."""

    claim: Claim
    measured: Percent
    interval: tuple[Percent, Percent]
    attack: str
    points: float
    verdict: Literal["confirmed", "overstated", "understated"]


class Card(Section):
    """The measurements of a submission: a file registry/cards/<dataset>/<norm>-<eps>/<name>.json.

    weights: file name, sha256, bytes, parameters. report: as `atent eval` writes it, with all attacks and flags; None
    if the network cannot be scored. curve: n, eps, and accuracy in [0, 1] at each eps, by the attack's name. command:
    the command that wrote the card. commit: of atent_ext, "" if unknown. date: ISO 8601. seconds: sum over processes.
    """

    submission: Submission
    weights: dict[str, Any]
    checks: tuple[Check, ...]
    signs: tuple[Sign, ...]
    verdicts: tuple[Verdict, ...]
    report: Report | None
    curve: Annotated[dict[str, Any], Field(default_factory=dict)]
    command: Readable
    commit: str
    date: str
    seconds: float

    @field_validator("report", mode="before")
    @classmethod
    def _none_of_an_older_version(cls, report: Any) -> Any:
        return None if report == {} else report

    @field_validator("weights")
    @classmethod
    def _name_a_file(cls, weights: dict[str, Any]) -> dict[str, Any]:
        file = weights.get("file")
        name = file if isinstance(file, str) and file.isprintable() else ""
        if name in ("", "..") or Path(name).name != name:  # the name of "." is empty
            raise ValueError(f"file is {str(file)[:100]!r}; the name of the weights file is needed, without folders")
        return weights

    @property
    def place(self) -> Path:
        """Where the card lies under registry/cards."""
        threat = self.submission.threat
        return Path(self.submission.dataset, f"{threat.norm}-{threat.eps:.4g}", f"{self.submission.name}.json")


def read_submission(path: Path) -> Submission:
    """Read and validate a card.yaml; YAML tags never build objects. Raises BadInput if it is not a valid card."""
    return _parsed(Submission, untrusted.plain_yaml(untrusted.read(path, _LARGEST), path), path)


def write_submission(submission: Submission, path: Path) -> None:
    """Write a card.yaml that `read_submission` reads back."""
    text = yaml.safe_dump(submission.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    files.write(path, text)


def read_card(path: Path) -> Card:
    """Read and validate a card of the registry. Raises BadInput if it is not a valid card."""
    try:
        raw = json.loads(untrusted.read(path, _LARGEST_CARD).decode("utf-8"))
    except BadInput:
        raise
    except (ValueError, RecursionError) as error:
        message = f"{path} is not a card in JSON: {untrusted.line(error)}"
        raise BadInput(message, code="unreadable", field="card") from None
    if _deep(raw, _DEEPEST):
        message = f"{path} is no card: its fields lie more than {_DEEPEST} deep in each other"
        raise BadInput(message, code="unsafe", field="card")
    return _parsed(Card, raw, path)


def find_card(path: Path) -> Card | None:
    """The card at the path where a card will be written; None if nothing is there. Raises BadInput for other files."""
    if not path.exists():
        return None
    try:
        return read_card(path)
    except BadInput as error:
        message = f"there is no room for the card: {error}; name another --out, or give --overwrite to replace it"
        raise BadInput(message, code="exists", field="out") from None


def _deep(value: Any, most: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_deep(child, most - 1) for child in children)


def write_card(card: Card, path: Path) -> None:
    """Write a card as JSON."""
    files.write(path, json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def content_of(card: Card, weights: Path) -> bytes:
    """The bytes of the file `weights`. Raises BadInput unless it is there and is the card's, by its SHA-256."""
    if not weights.is_file():
        message = f"there is no weights file {weights}; name the file of the card with --weights"
        raise BadInput(message, code="missing", field="weights")
    content = weights.read_bytes()
    require_weights(card, content, weights)
    return content


def require_weights(card: Card, content: bytes, weights: Path) -> None:
    """Raise BadInput unless `content`, of the file `weights`, has the card's SHA-256."""
    digest, named = hashlib.sha256(content).hexdigest(), card.weights.get("sha256")
    if digest != named:
        message = f"{weights} has SHA-256 {digest}, but the card is of a file with {named}; give that file"
        raise BadInput(message, code="other-content", field="weights")


def _parsed(kind: type[Kind], raw: Any, path: Path) -> Kind:
    if not isinstance(raw, dict):
        message = f"{path} holds no fields; a card is a mapping of names to values"
        raise BadInput(message, code="bad-type", field="card")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise BadInput(f"{path} is no card: {explain(error)}", code="bad-value", field=first_field(error)) from None


def explain(error: ValidationError) -> str:
    """The first five errors of a card's fields, on one line."""
    return "; ".join(map(_field_error, error.errors()[:5]))


def first_field(error: ValidationError) -> str:
    """The first field that is wrong, with dots: claims.0.percent."""
    return _field(error.errors()[0])


def _field(error: Any) -> str:
    return ".".join(str(part)[:50] for part in error["loc"] if str(part).strip())  # tags are blank


def _field_error(error: Any) -> str:
    return " ".join(f"{_field(error)!a}: {error['msg'].removeprefix('Value error, ')}".split())[:400]
