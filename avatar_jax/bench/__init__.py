"""Timing and counting: stages of a method, training steps."""
