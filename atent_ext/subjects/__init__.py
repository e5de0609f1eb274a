"""Sources of subjects to score, one per file. `load` takes the reference that a user typed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
