from .networks import build as build
from .networks import build_for as build_for
from .speed import Prepared as Prepared
from .speed import prepare as prepare
from .weights import load_weights as load_weights
from .weights import save_weights as save_weights
from .wrappers import Normalised as Normalised
