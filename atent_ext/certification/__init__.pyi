from .intervals import certified_linf as certified_linf
from .smoothing import Certificate as Certificate
from .smoothing import Smoothing as Smoothing
from .smoothing import certified_accuracy as certified_accuracy
from .smoothing import certified_flags as certified_flags
from .smoothing import certify_all as certify_all
