"""Networks by name, their weights in files, wrappers around them, and settings that make them run fast.

networks   architectures of the registry
libraries  those of other libraries
contrast   a network whose first layer saturates, for interval bounds
structure  a hash of what the state dict does not say of a network
normfree   wide residual networks without BatchNorm
weights    saving and loading the weights of a network: the one reader of files
programs   networks as exported programs (.pt2)
speed      memory formats, compilation, CUDA graphs, folding of BatchNorm
wrappers   normalisation in front of a network
which_weights, stated_normalisation   what the reader does where a file leaves something open
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
