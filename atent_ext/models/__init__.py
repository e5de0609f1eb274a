"""Networks by name, their weights in files, wrappers around them, and settings that make them run fast.

networks   the architectures of the registry
weights    saving and loading the weights of a network
wrappers   normalisation in front of a network
programs   networks as exported programs (.pt2)
speed      memory formats, compilation, CUDA graphs, folding of BatchNorm
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
