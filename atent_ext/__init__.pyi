from .attacks import L2ATENTAttack as L2ATENTAttack
from .attacks import LinfATENTAttack as LinfATENTAttack
from .core.errors import AtentError as AtentError
from .evaluation.comparison import compare as compare
from .evaluation.in_memory import evaluate as evaluate
from .evaluation.report import Report as Report
from .objectives import ATENT as ATENT
from .objectives import MART as MART
from .objectives import PGDAT as PGDAT
from .objectives import TRADES as TRADES
from .objectives import Standard as Standard
from .subjects.zoo import load as load
from .training import fit as fit

__version__: str
