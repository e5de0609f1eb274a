"""Bridges to neighbouring packages, one file each, imported only when asked for."""
