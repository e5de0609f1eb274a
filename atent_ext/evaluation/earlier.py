"""A report that lies where another one is to be written: of the same setting it is taken as it is, else it stays."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atent_ext.core.errors import BadInput
from atent_ext.evaluation.journal import Difference, differences

_SUBJECT, _SETTING = ("weights_sha256", "model", "data"), ("seed", "chunk", "batch_size", "versions", "speed", "folded")
_CONTENT = "content_sha256"
REMEDY = "give --overwrite to replace it, or name another --out"
_NAMED = 3
"""How many differences an error names."""


def read(path: Path) -> dict[str, Any] | None:
    """The report in a file; None where no file is. Raises BadInput for a file that is anything else."""
    found = read_all(path, alone=True)
    return found[0] if found else None


def read_all(path: Path, alone: bool = False) -> list[dict[str, Any]]:
    """The reports in a file: a list of them, or one `alone`; none where no file is. Raises BadInput as `read` does."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        reports = [found] if alone else found
        for report in reports:
            setting(report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BadInput(
            f"{path} is there and no report of `atent eval` ({reason}); {REMEDY}", code="exists", field="out"
        ) from None
    return list(reports)


def setting(report: Mapping[str, Any]) -> dict[str, Any]:
    """What decided the flags of a report, as `scoring` calls it; what an older report does not say is None."""
    return {
        **{key: report.get(key) for key in _SUBJECT},
        "n": report["results"][0]["n"],
        "threat": report["threat"],
        "protocol": {"name": report["protocol"], "attacks": report.get("protocol_attacks")},
        **{key: report.get(key) for key in _SETTING},
        "device": report["machine"]["device"],
        _CONTENT: report.get(_CONTENT),
    }


def require(found: Mapping[str, Any], facts: Mapping[str, Any], source: str) -> None:
    """Raise BadInput, which names what differs, unless the setting `found`, of a report in `source`, is `facts`.

    What `facts` do not hold yet, such as the speed that is chosen, is not compared.
    """
    asked = {key: facts[key] for key in found if key in facts}
    asked["protocol"] = {key: facts["protocol"][key] for key in found["protocol"]}
    refuse(differences({key: found[key] for key in asked}, json.loads(json.dumps(asked))), source)


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
