"""Names with few values, which is all that listing needs to know: nothing here imports torch."""

from typing import Literal, TypeAlias

NormName: TypeAlias = Literal["Linf", "L2"]
