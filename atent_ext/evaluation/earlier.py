"""A report that lies where another one is to be written: of the same setting it is taken as it is, else it stays."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atent_ext.core.errors import BadInput
from atent_ext.evaluation.journal import Difference, differences
from atent_ext.evaluation.report import Report

_CONTENT = "content_sha256"
_SETTING = {
    "weights_sha256",
    "model",
    "data",
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
"""How many differences an error names."""


def read(path: Path) -> Report | None:
    """The report in a file; None where no file is. Raises BadInput for a file that is anything else."""
    if not path.exists():
        return None
    try:
        return Report.load(path)
    except BadInput as error:
        message = f"{path} is there and no report of `atent eval` ({error}); {REMEDY}"
        raise BadInput(message, code="exists", field="out") from None


def setting(report: Report) -> dict[str, Any]:
    """What decided the flags of a report, as `scoring` calls it; what an older report does not say is None."""
    return {
        **report.model_dump(mode="json", include=_SETTING),
        "protocol": {"name": report.protocol, "attacks": report.protocol_attacks},
        "device": report.machine.get("device"),
        _CONTENT: report.content_sha256,
    }


def require(before: Mapping[str, Any], facts: Mapping[str, Any], source: str) -> None:
    """Raise BadInput, which names what differs, unless the setting `before`, of a report in `source`, is `facts`.

    What `facts` do not hold yet, such as the speed that is chosen, is not compared.
    """
    asked = {key: facts[key] for key in before if key in facts}
    asked["protocol"] = {key: facts["protocol"][key] for key in before["protocol"]}
    plain = json.loads(json.dumps([{key: before[key] for key in asked}, asked]))
    refuse(differences(*plain), source)


def refuse(changes: Sequence[Difference], source: str) -> None:
    """Raise BadInput if there are changes; it names the first ones. The content is named where nothing else differs."""
    named = [change for change in changes if change.name != _CONTENT] or changes
    if named:
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        raise BadInput(
            f"{source} was made with {'; '.join(map(str, named[:_NAMED]))}{more}; {REMEDY}",
            code="other-content",
            field=named[0].name,
        )
