"""Files on disk: atomic writes, locks, delayed signals, and untrusted input that is read without running its code.

files               atomic writes; tensors from files
locks               one process at a time in a folder
signals             Ctrl-C and SIGTERM are delayed until a file is written
checkpoints         what lies in a checkpoint, however nested
state_dicts         where the network is among it: prefixed, wrapped, or parameters in order
untrusted           folders and YAML from others
untrusted_weights   weights from others: of bounded size, tensors only
untrusted_program   exported programs (.pt2) from others: known operators only
"""
