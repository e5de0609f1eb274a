"""Types of names that are needed without importing torch."""

from typing import Literal, TypeAlias

NormName: TypeAlias = Literal["Linf", "L2"]
