"""Training methods, one a file: immutable values called with `(model, x, y)` that yield the terms to back-propagate."""

from atent_ext.objectives.atent import ATENT
from atent_ext.objectives.mart import MART
from atent_ext.objectives.pgd_at import PGDAT
from atent_ext.objectives.standard import Standard
from atent_ext.objectives.trades import TRADES

__all__ = ["ATENT", "MART", "PGDAT", "TRADES", "Standard"]
