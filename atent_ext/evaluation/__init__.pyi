from .certificates import certify as certify
from .protocol import Protocol as Protocol
from .protocol import load_protocol as load_protocol
from .scoring import Subject as Subject
from .scoring import score as score
