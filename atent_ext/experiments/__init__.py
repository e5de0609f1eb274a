"""Whole experiments: train, score, tabulate, draw. The quickstart, and the tables and figures of the papers.

quickstart   five methods on handwritten digits
study        a table or figure of a paper as data (eval/protocols/papers)
rows         a row of a study: its network and each of its cells
reproduce    a study at a scale, cell by cell
timing       studies that measure time
report       a result as a table in a terminal
markdown     results as a page
drawing      the papers' figures by name
runner       train, score, keep what is done: what all experiments call
"""
