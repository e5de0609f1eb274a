"""What a user can point at to be scored, one source a file; `load` takes what was typed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
