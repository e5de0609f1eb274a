"""Types of names that are needed without importing torch."""

from typing import Literal, TypeAlias

NormName: TypeAlias = Literal["Linf", "L2"]
ThreatNorm: TypeAlias = Literal["Linf", "L2", "L1"]
"""Norms of threat models; L1 is for evaluation by AutoAttack alone."""
