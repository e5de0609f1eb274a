"""Protocols: which attacks are run, in which order; files of eval/protocols/, of other packages, or of the user."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from atent_ext.attacks.spec import AnyAttack
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Section, explain

_SUFFIXES = (".yaml", ".yml")


class Protocol(Section):
    """What is measured, in order."""

    name: str
    description: str
    attacks: Annotated[tuple[AnyAttack, ...], Field(min_length=1)]


def load_protocol(name: str) -> Protocol:
    """The protocol `name`, ours or another package's, or the one in a YAML file at that path.

    Raises BadInput with the nearest name if there is none, and for a file that holds no protocol.
    """
    if name.endswith(_SUFFIXES):
        path = Path(name)
        if not path.is_file():
            raise BadInput(f"there is no protocol file {name}", code="missing", field="protocol")
    else:
        known = registry.files("protocol")
        if name not in known:
            raise registry.nearest("protocol", name, known)
        path = known[name]
    try:
        return Protocol.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        message = f"protocol {name} cannot be read: {error.strerror}"
        raise BadInput(message, code="unreadable", field="protocol") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        message = f"protocol {name} is not YAML: {' '.join(str(error).split())}"
        raise BadInput(message, code="unreadable", field="protocol") from None
    except ValidationError as error:
        raise BadInput(f"protocol {name}: {explain(error, Protocol)}", field="protocol") from None
