"""Attacks: the Langevin kernel and its loop, restarts, the attacks of protocols, and per-image robustness flags.

langevin           the kernel, which adds step, pull and noise, and the only loop over steps
moves              its directions, pulls, starts and schedules, by name
uphill             the losses of restarts, and the way off points without a gradient
restarts           restarts of a chain, and which of the iterates is returned
gibbs, mixing      draws from the Gibbs law of the loss, the share of adversarial mass, and whether chains mixed
advertorch_style   LinfATENTAttack and L2ATENTAttack, in the interface of advertorch
autoattack         AutoAttack on a batch of images
external           minimal-norm attacks of other libraries
spec               an attack of a protocol: its fields, its setting, its outcome
specs              the attacks of protocols that this package defines
accuracy           which images a model predicts correctly, clean and under attack; checks ball and box
gamma              calibration of the strength of ATENT's ℓ2 pull
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
