"""The command `atent`: parse, call, print.

app           train, eval, certify, export, quickstart, reproduce, plot, doctor
submissions   verify, board, submit, submission new, registry check
options       options that mean the same everywhere, and the console
console       progress bars and tables
exit          how a command ends: well, interrupted, or refused in one line
doctor        which neighbours work here
"""
