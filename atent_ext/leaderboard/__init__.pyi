from .ranking import Entry as Entry
from .ranking import Table as Table
from .site import build as build
