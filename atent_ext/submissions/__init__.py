"""Submitted checkpoints: cards, weights, checks, signs of gradient masking, verdicts on claims.

cards          the claims about a checkpoint, and its measurements
folder         reads a submission without running code in it; writes one
sanity         checks that a network is a classifier of single images
probing        outputs and gradients of a network, used by the checks
masking        signs of gradient masking
verification   from a submission that was read to its card
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
