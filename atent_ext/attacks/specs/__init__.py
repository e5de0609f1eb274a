"""The attacks of protocols that this package brings, by kind; `core.registry` names them."""
