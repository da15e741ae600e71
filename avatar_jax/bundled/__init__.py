"""How the networks and weights in the package were made."""
