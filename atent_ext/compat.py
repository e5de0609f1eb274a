"""Repairs of neighbouring packages, made when they are asked for: the public name of `atent_ext.core.compat`."""

from atent_ext.core.compat import (
    VERSIONS,
    advertorch,
    autoattack_class,
    autoattack_package,
    neighbour,
    repairs,
    robustbench,
    untouched,
)

__all__ = [
    "VERSIONS",
    "advertorch",
    "autoattack_class",
    "autoattack_package",
    "neighbour",
    "repairs",
    "robustbench",
    "untouched",
]
