"""ATENT: adversarial training by entropic regularization."""

__version__ = "0.1.0"
