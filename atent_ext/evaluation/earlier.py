"""An existing report at the path of a new one: reuse it if the setting is the same, else refuse to replace it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atent_ext.core.errors import BadInput
from atent_ext.evaluation.drawn import AS_MANY
from atent_ext.evaluation.journal import Difference, differences
from atent_ext.evaluation.report import Report

_IMAGES, _CONTENT = "data_sha256", "content_sha256"
_SETTING = {
    "weights_sha256",
    "model",
    "data",
    _IMAGES,
    "n",
    "threat",
    "seed",
    "chunk",
    "batch_size",
    "versions",
    "speed",
    "folded",
}
REMEDY = "give --overwrite to replace it, or name another --out"
_NAMED = 3
"""The most differences that an error names."""


def read(path: Path) -> Report | None:
    """The report in a file; None if there is no file. Raises BadInput for a file that is not a report."""
    if not path.exists():
        return None
    try:
        return Report.load(path)
    except BadInput as error:
        message = f"{path} is there and no report of `atent eval` ({error}); {REMEDY}"
        raise BadInput(message, code="exists", field="out") from None


def setting(report: Report) -> dict[str, Any]:
    """The setting of a report, with the keys of the facts in `scoring`; None for what an older report lacks.

    An older report may lack the hash of the images, which is then left out: `content_sha256` covers them, too.
    """
    known = report.model_dump(mode="json", include=_SETTING)
    return {
        **{name: value for name, value in known.items() if (name, value) != (_IMAGES, None)},
        "n": report.n if report.drawn is None else AS_MANY,
        "protocol": {"name": report.protocol, "attacks": report.protocol_attacks},
        "device": report.machine.get("device"),
        _CONTENT: report.content_sha256,
    }


def require(before: Mapping[str, Any], facts: Mapping[str, Any], source: str) -> None:
    """Raise BadInput, which names what differs, unless the setting `before`, of the report in `source`, equals `facts`.

    Keys that `facts` lack, such as a speed that is not chosen yet, are not compared.
    """
    expected = {key: facts[key] for key in facts if key in before}
    expected["protocol"] = {key: facts["protocol"][key] for key in before["protocol"]}
    plain = json.loads(json.dumps([{key: before[key] for key in expected}, expected]))
    refuse(differences(*plain), source)


def refuse(changes: Sequence[Difference], source: str) -> None:
    """Raise BadInput if there are changes; it names the first ones, and a hash only if nothing else changed."""
    named = [change for change in changes if change.name not in (_IMAGES, _CONTENT)] or changes
    if named:
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        raise BadInput(
            f"{source} was made with {'; '.join(map(str, named[:_NAMED]))}{more}; {REMEDY}",
            code="other-content",
            field=named[0].name,
        )
