"""What everything else stands on: errors, norms, losses, checks of input, the registry of names, repairs of neighbours.

errors        every error that is raised on purpose; each has a code, and the field that is wrong
types         the protocols that the packages meet in; shapes and value ranges
immutable     dicts and lists that do not change
schema        pieces of validated data: Section, Threat, Network, Count
norms         ℓ∞ and ℓ2 as values: size, projection, random points, steepest direction
losses        per-example losses
validate      checks of what users hand in
seeds         seeds that follow from a user's, generators
model_state   leave a model as it was found: mode, requires_grad, gradients, device, random state
processes     whether this is one of several processes, which one, and what they tell each other
statistics    intervals and tests for counts of images
fraction      numbers written as 8/255
tables        tables for terminals in which nothing is cut
registry      names -> objectives, models, data sets; recipes, protocols, cards as files
compat        repairs that make neighbouring packages work on today's PyTorch
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
