"""The base layer: errors, norms, losses, input validation, the registry of names, repairs of other packages.

errors        all errors that atent_ext raises; each has a code and the field that is wrong
types         interfaces that several packages use; shapes and value ranges
immutable     read-only dicts and lists
schema        shared pydantic models and field types: Section, Threat, Network, Count
norms         the ℓ∞ and ℓ2 norms: size, projection, random points, direction of steepest ascent
losses        per-example losses
validate      checks of arguments, images, labels and logits
seeds         derived seeds, and generators
model_state   context managers that restore a model's mode, requires_grad, gradients and the random state
processes     distributed runs: whether a launcher started several processes, and how they share values
statistics    confidence intervals and paired tests for accuracies
fraction      numbers written as 8/255
tables        terminal tables that never cut a cell
registry      looks up objectives, attacks, models and data sets by name, and files of recipes, protocols and cards
compat        repairs that make optional packages work with current PyTorch
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
