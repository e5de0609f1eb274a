"""Bridges to neighbouring packages, one file or folder each, imported only when asked for."""
