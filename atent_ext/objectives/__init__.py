"""Training methods, one per file: immutable objects, called with `(model, x, y)`, that yield scalar loss terms."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
