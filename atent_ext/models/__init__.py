"""Networks by name, their weights to and from files, what stands around them, and how they run fast.

networks   the architectures of the registry
weights    a network's weights to and from a file
wrappers   normalisation in front of a network
speed      memory formats, compilation, CUDA graphs, folding of BatchNorm
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
