"""Attacks: the Langevin kernel and its one loop, restarts, the attacks of protocols, and flags of what stays right.

langevin           the kernel, where step, pull and noise are added, and the only loop over steps
restarts           several runs of a chain, and which of their points is returned
advertorch_style   LinfATENTAttack and L2ATENTAttack
autoattack         AutoAttack on a batch of images
external           minimal-norm attacks of other libraries
spec               what an attack of a protocol is, the setting it runs under, its outcome
specs              the attacks of protocols that this package brings, a kind a file
accuracy           which images stay right, re-checked against ball and box
gamma              how strong ATENT's ℓ2 pull has to be
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
