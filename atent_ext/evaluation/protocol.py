"""Protocols: the attacks to run, in order. Files of eval/protocols/, of other packages, or of the user."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from atent_ext.attacks.spec import AnyAttack
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.fraction import fractions
from atent_ext.core.schema import Section, explain

_TEXTS = ("name", "description")
_SUFFIXES = (".yaml", ".yml")


class Protocol(Section):
    """The attacks that are run, in order."""

    name: str
    description: str
    attacks: Annotated[tuple[AnyAttack, ...], Field(min_length=1)]


def load_protocol(name: str) -> Protocol:
    """The protocol called `name`, of this or another package, or the protocol in the YAML file at the path `name`.

    Raises BadInput with the nearest known name for an unknown name, and for a file that is not a valid protocol.
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
        return Protocol.model_validate(fractions(yaml.safe_load(path.read_text(encoding="utf-8")), _TEXTS))
    except OSError as error:
        message = f"protocol {name} cannot be read: {error.strerror}"
        raise BadInput(message, code="unreadable", field="protocol") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        message = f"protocol {name} is not YAML: {' '.join(str(error).split())}"
        raise BadInput(message, code="unreadable", field="protocol") from None
    except ValidationError as error:
        message = f"protocol {name}: {explain(error, Protocol)}"
        raise BadInput(message, code="bad-value", field="protocol") from None
