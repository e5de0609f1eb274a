"""Training methods, one a file: immutable values called with `(model, x, y)` that yield the terms to back-propagate."""

from atent_ext.objectives.atent import ATENT, DESGD
from atent_ext.objectives.ibp import IBP
from atent_ext.objectives.mart import MART
from atent_ext.objectives.mma import MMA
from atent_ext.objectives.pgd_at import PGDAT
from atent_ext.objectives.smoothing import GaussianNoise, SmoothAdv, SmoothTRADES
from atent_ext.objectives.standard import Standard
from atent_ext.objectives.trades import TRADES

__all__ = [
    "ATENT",
    "DESGD",
    "IBP",
    "MART",
    "MMA",
    "PGDAT",
    "TRADES",
    "GaussianNoise",
    "SmoothAdv",
    "SmoothTRADES",
    "Standard",
]
