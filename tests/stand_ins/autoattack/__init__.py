"""Stands in for the original AutoAttack, which PyPI does not have: its signatures, defaults and printing.

The attacks are pyautoattack's, which are the original's. `original_autoattack.py` beside this folder puts it in place.
"""

from .autoattack import AutoAttack as AutoAttack
