"""The leaderboard: cards ranked, written as a site, and checked.

ranking   the cards, read and ranked
site      the pages
curve     the drawing of a model's accuracy against eps
check     whether cards, hashes, counts and recipes are in order
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
