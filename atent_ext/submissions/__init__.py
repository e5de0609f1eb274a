"""Checkpoints that strangers send: cards, weights, checks, signs of gradient masking, verdicts on claims.

cards          what is claimed of a checkpoint, and what was measured of it
folder         a submission, opened so that nothing in it is run; and written
sanity         whether a network answers as a classifier of single images
probing        small experiments on a network that the checks share
masking        signs of gradient masking
verification   from an opened submission to its card
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
