from .datasets import DataSet as DataSet
from .datasets import Split as Split
from .datasets import hold_out as hold_out
from .datasets import load as load
