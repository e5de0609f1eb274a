"""Protocols: which attacks are run, in which order; files of eval/protocols/."""

from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from atent_ext.attacks.spec import AttackSpec
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Section


class Protocol(Section):
    """What is measured, in order: a file of eval/protocols/."""

    name: str
    description: str
    attacks: Annotated[tuple[AttackSpec, ...], Field(min_length=1)]


def load_protocol(name: str) -> Protocol:
    """A protocol of eval/protocols by name. Raises BadInput with the nearest name if there is none."""
    shipped = registry.files("protocol")
    if name not in shipped:
        raise registry.nearest("protocol", name, shipped)
    try:
        return Protocol.model_validate(yaml.safe_load(shipped[name].read_text(encoding="utf-8")))
    except ValidationError as error:
        raise BadInput(f"protocol {name}: {' '.join(str(error).split())}") from None
