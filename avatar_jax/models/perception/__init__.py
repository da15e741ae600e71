"""Frozen networks that losses and metrics look through. Parameters carry the key names of the public weight files."""
