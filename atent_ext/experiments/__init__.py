"""Experiments: train, score, tabulate, draw. The quickstart, and the tables and figures of the papers.

quickstart   five methods on handwritten digits
study        a table or figure of a paper as data (eval/protocols/papers)
rows         a row of a study: its model and its cells; the context of a reproduction
reproduce    measure a study at a scale, cell by cell
timing       studies that measure training time
report       a result as a table in a terminal
markdown     results as a Markdown page
drawing      draw the papers' figures by name
runner       train, score and resume; used by all experiments
"""
