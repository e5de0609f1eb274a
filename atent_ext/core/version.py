"""The version of this package; every report names it."""

__version__ = "0.2.0"
