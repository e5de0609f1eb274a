from .entropy_sgd import EntropySGD as EntropySGD
from .loop import Metrics as Metrics
from .loop import Reporter as Reporter
from .loop import fit as fit
from .recipes import Recipe as Recipe
from .run_folder import RunFolder as RunFolder
