"""The attacks of protocols that this package defines; `core.registry` lists them."""
