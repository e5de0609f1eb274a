"""The command `atent`: parses arguments, calls the library, prints results.

app           the whole command, --version, doctor
listing       ls
show          show
train         train
evaluate      eval, certify, export
compare       compare
view          view
experiments   quickstart, reproduce, plot
submissions   verify, submit, submission new
leaderboard   board, registry check
catalog       lists of recipes, models, cards, ... without importing torch
card_text     a card as text
options       shared options, the console, and print functions
console       progress bars and tables
exit          exit codes and one-line error messages
doctor        tests which optional packages work here
"""
