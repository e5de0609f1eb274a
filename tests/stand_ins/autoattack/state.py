from pyautoattack.state import EvaluationState as EvaluationState
