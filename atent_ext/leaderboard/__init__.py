"""The leaderboard: ranks cards, writes them as a site, and checks the registry.

ranking   reads and ranks the cards
site      writes the pages and the Markdown tables
curve     the figure of a model's accuracy against eps
view      `atent view`: a report, a card or a run as one page; view_images adds the images, chart its curves
check     finds errors in cards, hashes, counts and recipes
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
