from .resolve import check_values as check_values
from .resolve import load as load
from .robustbench import from_zoo as from_zoo
from .run_folder import from_run as from_run
from .weights_file import from_weights as from_weights
from .zoo import from_card as from_card
