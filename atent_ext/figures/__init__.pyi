from .plots import Curve as Curve
from .plots import accuracy_curve as accuracy_curve
from .plots import draw_curves as draw_curves
from .plots import draw_portraits as draw_portraits
from .plots import portrait as portrait
