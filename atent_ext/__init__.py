"""ATENT: adversarial training by entropic regularization.

The public names are imported when they are first used, so that `import atent_ext` is quick and touches no other
package.
"""

import lazy_loader

from atent_ext.core.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
