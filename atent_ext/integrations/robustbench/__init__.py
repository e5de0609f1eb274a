"""RobustBench: our models in its zoo, its zoo in our evaluation, and bundles for its leaderboard.

zoo             models of its zoo for our evaluation
registration    our models in its zoo: `register`, `register_run`
source          the source code of a network, which a bundle holds
export          a training run as a checkpoint for its zoo
card            a card of the registry as its model_info and issue form
bundle          the folder that its maintainers ask for
register_file   the texts of a bundle that put its model into RobustBench
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
