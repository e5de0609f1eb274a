"""Certified robustness: randomized smoothing in ℓ2, interval bounds in ℓ∞."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
