from .certificates import certify as certify
from .protocol import Protocol as Protocol
from .protocol import load_protocol as load_protocol
from .report import About as About
from .report import Report as Report
from .report import Result as Result
from .scoring import Subject as Subject
from .scoring import score as score
