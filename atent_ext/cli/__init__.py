"""The command `atent`: parse, call, print.

app           the commands together, --version, doctor
listing       ls
show          show
train         train
evaluate      eval, certify, export
compare       compare
experiments   quickstart, reproduce, plot
submissions   verify, submit, submission new
leaderboard   board, registry check
catalog       what there is, read from files and names alone
card_text     a card in words
options       options that mean the same everywhere, the console, and how it is printed to
console       progress bars and tables
exit          how a command ends: well, interrupted, or refused in one line
doctor        which neighbours work here
"""
