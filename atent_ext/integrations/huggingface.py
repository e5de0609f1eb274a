"""The Hugging Face hub: fetch files of a repository, and write the folder of a new one. No code of one is run.

Files are fetched and cached by the package huggingface_hub (extra `hub`). HF_ENDPOINT and HF_HUB_CACHE name another hub
and another cache. With HF_HUB_OFFLINE=1 only the cache is read.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atent_ext.core import compat
from atent_ext.core.errors import BadInput
from atent_ext.evaluation.report import Report, Result
from atent_ext.storage import files, untrusted
from atent_ext.submissions import cards
from atent_ext.submissions.cards import Card

PREFIX = "hf:"
CARD = "card.json"
"""The card in a repository, as `atent verify` wrote it."""
_FORM = re.compile(
    r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/\w+/[\w.-]+|[\w.-]+))?(?:/(?P<file>[^\s\\]+))?", re.ASCII
)
_LICENSES = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "cc0-1.0", "cc-by-4.0"}
"""Licenses that are named on the hub as here; any other is "other" there."""


@dataclass(frozen=True)
class Place:
    """A repository of the hub, OWNER/NAME. revision: a branch, tag or commit. file: its path."""

    name: str
    revision: str | None = None
    file: str | None = None

    def beside(self, name: str) -> str:
        """The path of the file `name` in the folder of `file`."""
        return (self.file or "").rpartition("/")[0] + "/" * ("/" in (self.file or "")) + name


@dataclass(frozen=True)
class Fetched:
    """A file of a repository. path: a link in the cache. shown: its name in errors. commit: of the repository."""

    path: Path
    shown: Path
    commit: str

    def read(self, most: int) -> bytes:
        """The bytes of the file, which has at most `most`."""
        return untrusted.read(self.path.resolve(), most)


def parse(reference: str) -> Place:
    """The place of `hf:OWNER/NAME[@REVISION][/FILE]`. Raises BadInput for another form."""
    found = _FORM.fullmatch(reference)
    if found is None or ".." in (found["file"] or "").split("/"):
        message = f"{reference!a} is not hf:OWNER/NAME[@REVISION][/FILE]; copy OWNER/NAME from the address of its page"
        raise BadInput(message, code="bad-value", field="subject")
    return Place(found["name"], found["revision"], found["file"])


def fetch(place: Place, file: str) -> Fetched | None:
    """A file of the repository, from the hub or the cache; None if there is no such file.

    Raises BadInput for a repository or revision that does not exist or is private, and for a hub that cannot be
    reached; MissingExtra if huggingface_hub is not installed.
    """
    hub: Any = compat.neighbour("huggingface_hub", "hub")
    errors: Any = compat.neighbour("huggingface_hub.errors", "hub")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    where = {"endpoint": os.environ.get("HF_ENDPOINT"), "cache_dir": os.environ.get("HF_HUB_CACHE")}
    try:
        path = hub.hf_hub_download(place.name, file, revision=place.revision, local_files_only=offline, **where)
    except errors.LocalEntryNotFoundError as error:
        if offline:  # nobody can say whether the repository has it
            return None
        message = (
            f"the hub cannot be reached for {place.name} ({_reason(error)}); with HF_HUB_OFFLINE=1 the cache is read"
        )
        raise BadInput(message, code="missing", field="subject") from None
    except errors.EntryNotFoundError:
        return None
    except errors.RevisionNotFoundError:
        message = f"{place.name} has no revision {place.revision!r}; name a branch, a tag or a commit"
        raise BadInput(message, code="missing", field="subject") from None
    except errors.RepositoryNotFoundError:
        message = (
            f"there is no repository {place.name} on the hub, or it is private: check its name, or log in to the hub"
        )
        raise BadInput(message, code="missing", field="subject") from None
    except (ValueError, errors.HfHubHTTPError, OSError) as error:  # ValueError: a name that it does not take
        message = f"{file} of {place.name} cannot be fetched ({_reason(error)}); try it again"
        raise BadInput(message, code="missing", field="subject") from None
    return Fetched(Path(path), Path(place.name, file), _commit(Path(path)))


def absent(place: Place, *names: str) -> BadInput:
    """The error for a repository that has none of the files `names`."""
    cached = " in the cache, and HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
    at = f" at {place.revision}" if place.revision else ""
    message = f"{place.name}{at} has no {' or '.join(names)}{cached}; name the file, {PREFIX}{place.name}/FILE"
    return BadInput(message, code="missing", field="subject")


def _commit(path: Path) -> str:
    """The commit in a path of the cache, .../snapshots/COMMIT/FILE."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else "unknown"


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:200]


# ---- a new repository


def write(card: Card, weights: Path, out: Path) -> list[Path]:
    """Write the files of a repository to the new folder `out`: weights, card.json and README.md; return the files.

    README.md is a model card of the hub, whose `model-index` has every result of the card. `hf:` reads the repository.
    Raises BadInput if `out` exists, for weights that are not the file of the card, and for a card without a report;
    MissingExtra if huggingface_hub is not installed.
    """
    report = card.report
    if report is None:
        message = f"{card.submission.name} could not be scored, so there is nothing to publish; fix the network first"
        raise BadInput(message, code="missing", field="report")
    text = _model_card(card, report)
    if out.exists():
        raise BadInput(f"{out} exists; name a folder that does not", code="exists", field="out")
    content = cards.content_of(card, weights)
    written = [out / card.weights["file"], out / CARD, out / "README.md"]
    files.write(written[0], content)
    cards.write_card(card, written[1])
    files.write(written[2], text)
    return written


def _model_card(card: Card, report: Report) -> str:
    hub: Any = compat.neighbour("huggingface_hub", "hub")
    submission = card.submission
    named = submission.license.lower().replace(" ", "-")
    known = {"license": named} if named in _LICENSES else {"license": "other", "license_name": submission.license}
    data = hub.ModelCardData(
        **known,
        library_name="atent-ext",
        pipeline_tag="image-classification",
        tags=["adversarial-robustness", "atent-ext"],
        datasets=[submission.dataset],
        model_name=submission.name,
        eval_results=[_measured(hub, card, report, result) for result in report.results],
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_text(card, report))


def _measured(hub: Any, card: Card, report: Report, result: Result) -> Any:
    return hub.EvalResult(
        task_type="image-classification",
        dataset_type=card.submission.dataset,
        dataset_name=report.data,
        dataset_split="test",
        dataset_args={"images": report.n, "sha256": report.data_sha256},
        metric_type="accuracy",
        metric_name=_named(report, result),
        metric_value=result.accuracy,
    )


def _named(report: Report, result: Result) -> str:
    threat = report.threat
    return "accuracy" if result.kind == "clean" else f"accuracy under {result.attack}, {threat.norm} {threat.eps:.4g}"


def _text(card: Card, report: Report) -> Iterator[str]:
    submission = card.submission
    low, high = (100 * bound for bound in report.worst.interval95)
    yield f"# {submission.name}\n"
    yield f"By {submission.authors}. {submission.training}".strip() + "\n"
    yield f"Scored by atent-ext on {report.data}, {report.split}; the worst case over all attacks is "
    yield f"{100 * report.worst.accuracy:.2f} % (95 % interval {low:.2f} to {high:.2f}).\n"
    yield "| attack | accuracy |\n| --- | --- |"
    yield from (f"| {result.attack} | {100 * result.accuracy:.2f} % |" for result in report.results)
    yield ""
    yield from (
        f"- Claim of {one.claim.percent:g} % ({one.claim.what}): {one.verdict}, {one.measured:.2f} % measured"
        for one in card.verdicts
    )
    yield from (f"- Check failed: {check.name}: {check.said}" for check in card.checks if check.passed is False)
    yield from (f"- Sign of gradient masking: {sign.name}: {sign.evidence}" for sign in card.signs if sign.found)
    yield from (f"- Note: {note}" for note in (*report.prepared, *card.weights.get("notes", ())))
    yield f"\nThe weights have the SHA-256 {card.weights['sha256']}. Images are in [0, 1]. To score the model again:\n"
    yield f"    atent eval hf:OWNER/{submission.name} --protocol {report.protocol}\n"
