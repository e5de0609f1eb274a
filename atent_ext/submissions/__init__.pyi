from .cards import Card as Card
from .cards import Claim as Claim
from .cards import Submission as Submission
from .cards import read_card as read_card
from .cards import write_card as write_card
from .folder import Opened as Opened
from .verification import verify as verify
