"""Scores of a model: a protocol of attacks, run in chunks with seeds of their own, to a report.

protocol       which attacks, in which order
run            a protocol on one set of images
chunks         an evaluation in chunks that processes share; makes each chunk's seed
journal        the records of finished chunks, which an interrupted evaluation goes on with
report         the report of an evaluation: typed, versioned, read and written
scoring        from a subject to a report
certificates   certificates of a subject's images, in one file
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
