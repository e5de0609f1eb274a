"""Adapters to other packages, one module or folder each. Importing atent_ext imports none of them."""
