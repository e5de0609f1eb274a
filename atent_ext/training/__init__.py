"""Training: recipes as data, one loop for every objective, run folders in which an interrupted training is resumed.

recipes       a run as validated data
recipe_files  the files of registry/recipes as plain data: bases, overrides
overrides     changes of a recipe, and the fields that depend on them
loop          the training loop, `fit`
batches       order, augmentation and shares of batches
run_folder    what a run leaves on disk, and who may write there
entropy_sgd   the optimizer Entropy-SGD
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
