"""Training: recipes as data, one loop for every objective, run folders in which an interrupted training is resumed.

recipes       a run as validated data
optimizers    its optimizer and learning rate
recipe_files  the files of registry/recipes as plain data: bases, overrides
overrides     changes of a recipe, and the fields that depend on them
loop          the training loop, `fit`
step          one optimizer step: terms, parts of a batch, perturbed weights, clipping
averages      averages of the weights
splits        the images of a training
batches       order and shares of batches
augment       random changes of images
mixing        mixup, CutMix, label smoothing
progress      the events that a training reports
tracking      TensorBoard, Weights & Biases, MLflow
run_folder    what a run leaves on disk, and who may write there
entropy_sgd   the optimizer Entropy-SGD
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
