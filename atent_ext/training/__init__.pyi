from .entropy_sgd import EntropySGD as EntropySGD
from .loop import fit as fit
from .progress import Metrics as Metrics
from .progress import Reporter as Reporter
from .recipes import Recipe as Recipe
from .run_folder import RunFolder as RunFolder
