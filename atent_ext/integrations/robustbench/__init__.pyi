from .registration import register as register
from .registration import register_run as register_run
from .zoo import LEADERBOARD_EPS as LEADERBOARD_EPS
from .zoo import load_zoo as load_zoo
from .zoo import zoo_files as zoo_files
