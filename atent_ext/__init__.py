"""ATENT: adversarial training by entropic regularization.

The public names below are imported when they are first used, so that `import atent_ext` is quick and touches no other
package.
"""

import pkgutil
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from atent_ext.attacks import L2ATENTAttack, LinfATENTAttack
    from atent_ext.errors import AtentError
    from atent_ext.objectives import ATENT, MART, PGDAT, TRADES, Standard
    from atent_ext.training import fit
    from atent_ext.zoo import load

_PUBLIC = {
    "ATENT": "objectives",
    "MART": "objectives",
    "PGDAT": "objectives",
    "TRADES": "objectives",
    "AtentError": "errors",
    "L2ATENTAttack": "attacks",
    "LinfATENTAttack": "attacks",
    "Standard": "objectives",
    "fit": "training",
    "load": "zoo",
}

__all__ = [
    "ATENT",
    "MART",
    "PGDAT",
    "TRADES",
    "AtentError",
    "L2ATENTAttack",
    "LinfATENTAttack",
    "Standard",
    "fit",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'atent_ext' has no attribute {name!r}")
    return pkgutil.resolve_name(f"atent_ext.{_PUBLIC[name]}:{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
