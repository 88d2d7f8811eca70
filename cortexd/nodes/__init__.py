"""How the gateway reaches a node."""
