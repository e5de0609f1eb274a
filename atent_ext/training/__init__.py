"""Training: recipes as data, one loop for every objective, run folders in which an interrupted training is resumed.

recipes       a run as validated data, read from registry/recipes
loop          the training loop, `fit`
batches       order, augmentation and shares of batches
run_folder    the files of a run, and the lock of its folder
entropy_sgd   the optimizer Entropy-SGD
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
