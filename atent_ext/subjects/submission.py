"""The submission of any source: its weights with the name of the architecture, or the network as a program."""

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from atent_ext.core import registry
from atent_ext.core.around import Around
from atent_ext.core.schema import Network
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report
from atent_ext.evaluation.scoring import Subject
from atent_ext.models import programs
from atent_ext.storage import untrusted, untrusted_program
from atent_ext.subjects import resolve, zoo
from atent_ext.subjects.exported_program import SUFFIX
from atent_ext.subjects.python_code import is_code
from atent_ext.submissions import folder
from atent_ext.submissions.cards import PROGRAM


def new(
    reference: str,
    out: Path,
    written: Mapping[str, str],
    name: str | None = None,
    report: Path | None = None,
    dataset_name: str | None = None,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Write the submission of a source to the new folder `out`, and return `out`.

    A weights file for a network of the registry, a model of the zoo and a program are copied, so that they keep their
    hash; any other network becomes a program (`programs.export`). written: authors, license, link, venue. name: default
    the source's. report: the file of `atent eval` on the source, whose accuracies become the claims. dataset_name: what
    the card calls data that is not of the registry; default the name of its file. source: arguments of `resolve.load`;
    without any, a run folder is written as `folder.new` does, with its recipe. Raises BadInput for an `out` that is not
    empty, fields that no card can have, a report of something else, and what `resolve.load` and `export` raise.
    """
    given = {key: value for key, value in (source or {}).items() if value not in (None, {}, False, Around())}
    if Path(reference).is_dir():
        if given.keys() - {"root", "download"}:
            resolve.load(reference, **given)  # raises for what a recipe decides
        return folder.new(Path(reference), out, name=name, report=report, **written)
    folder.check(written, name)
    folder.check_new(out)
    kept = _kept(reference, given)
    if kept is None and (is_code(reference) or is_code(str(given.get("model")))):
        programs.check_torch()  # before the code runs
    loaded = resolve.load(reference, **given)
    content, file, fields = _program(loaded, given) if kept is None else (_bytes(kept[0]), *kept[1:])
    claims = [] if report is None else folder.claims(report, loaded.threat, lambda found: _same(found, loaded))
    data = dataset_name or _name(str(given.get("dataset") or loaded.about.data))
    own: dict[str, Any] = {"name": name or _name(loaded.about.name), "dataset": data, "threat": loaded.threat}
    folder.write(folder.valid({**written, **own, **fields, "claims": claims}), content, file, out)
    return out


def _kept(reference: str, given: Mapping[str, Any]) -> tuple[Path, str, dict[str, Any]] | None:
    """The file to copy, its name in the submission, and the fields of the card that say how to read it.

    None for a network that becomes a program.
    """
    around: Around = given.get("around") or Around()
    stated = {**around.stated, "weights_key": given.get("weights_key")}
    path, model = Path(reference), given.get("model")
    ours = given.get("dataset") in registry.entries("data set")
    if ours and model in registry.entries("model") and path.is_file() and around.output is None:
        network = Network(name=str(model), arguments=dict(given.get("arguments") or {}))
        return path, f"model{_suffix(path)}", {**stated, "architecture": network}
    if path.suffix == SUFFIX and path.is_file() and (ours or around.resize_inside is None):
        return path, f"model{SUFFIX}", stated
    known = reference.removeprefix("zoo:")
    if model is None and known in zoo.names() and not path.exists():
        (card, *_), weights = zoo.find(known)
        submission = card.submission
        fields = {key: getattr(submission, key) for key in ("architecture", "normalisation", "weights_key", "training")}
        return weights, "model.safetensors", fields
    return None


def _program(loaded: Subject, given: Mapping[str, Any]) -> tuple[bytes, str, dict[str, Any]]:
    """The network as a program, its file name, and the fields of the card that say how to read it."""
    around: Around = given.get("around") or Around()
    before = {} if around.resize is None else {"resize": around.resize}
    with TemporaryDirectory() as temporary:
        made = Path(temporary, f"model{SUFFIX}")
        programs.export(loaded.model, loaded.test.take(min(4, len(loaded.test))).images, made)
        training = f"Exported from {loaded.about.model}."[:2000]
        return made.read_bytes(), made.name, {**before, "architecture": Network(name=PROGRAM), "training": training}


def _bytes(path: Path) -> bytes:
    return untrusted.read(path.resolve(), untrusted_program.MOST)


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.name.endswith(".tar") else path.suffix or ".pt"


def _same(report: Report, loaded: Subject) -> bool:
    """Whether a report is of a subject: by the hash of the weights file and the model, else by what was scored."""
    if loaded.about.weights_sha256 is not None:
        return (report.weights_sha256, report.model) == (loaded.about.weights_sha256, loaded.about.model)
    test = loaded.test.take(min(report.n, len(loaded.test)))
    tensors = [*loaded.model.state_dict().values(), *loaded.model.buffers()]
    return report.content_sha256 == datasets.digests(test, *tensors)[1]


def _name(text: str) -> str:
    """A valid name for a card: that of npz:a/own.npz is "own"."""
    plain = text.partition(", ")[0].partition(":")[2] if ":" in text else text.partition(", ")[0]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(plain).stem if ":" in text else plain).lstrip("._-")
    return stem[:100] or "model"
