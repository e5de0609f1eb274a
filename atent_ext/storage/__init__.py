"""Files on disk, whole or not at all, and whatever a stranger sends, read without running any of it.

files               write under a temporary name, then rename; tensors from files
locks               one process at a time in a folder
signals             Ctrl-C and SIGTERM wait until a file is whole
state_dicts         layouts of state dicts: nested, prefixed, saved from several processes
untrusted           a stranger's folder and YAML
untrusted_weights   a stranger's weights: bounded, tensors only
"""
