"""Scoring: run the attacks of a protocol in chunks and write a report.

protocol       the attacks to run and their order
run            run a protocol on one set of images
chunks         cut a test set into chunks with a seed each; merge their outcomes
engine         score chunks, shared by processes; halve the batch size if memory runs out
journal        the records of finished chunks, from which an interrupted evaluation resumes
scoring        from a subject to a report; the class Subject
report         the results, typed and versioned
union          the report of several threat models
threats        score a subject under several threat models
report_files   how reports are read, and shown as text
earlier        compare an existing report with the setting of a new one
in_memory      score a model in memory: `atent_ext.evaluate`
comparison     test whether two models differ: `atent_ext.compare`
certificates   randomized-smoothing certificates of a subject's images, in one file
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
