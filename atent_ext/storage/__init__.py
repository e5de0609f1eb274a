"""Files on disk: atomic writes, locks, delayed signals, and untrusted input that is read without running its code.

files               atomic writes; tensors from files
locks               one process at a time in a folder
signals             Ctrl-C and SIGTERM are delayed until a file is written
state_dicts         layouts of state dicts: nested, prefixed, saved from several processes
untrusted           folders and YAML from others
untrusted_weights   weights from others: of bounded size, tensors only
untrusted_program   exported programs (.pt2) from others: known operators only
"""
