"""Scores of a model: a protocol of attacks, run in chunks with seeds of their own, to a report.

protocol       which attacks, in which order
run            a protocol on one set of images
chunks         an evaluation in chunks that processes share; makes each chunk's seed
journal        the records of finished chunks, which an interrupted evaluation goes on with
scoring        from a subject to a report; the class Subject
report         what was measured, typed and versioned
earlier        a report that lies where another is to go
in_memory      score a network that is at hand: `atent_ext.evaluate`
comparison     are two networks different? `atent_ext.compare`
certificates   certificates of a subject's images, in one file
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
