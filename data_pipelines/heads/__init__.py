"""The procedural talking heads as a TFDS data set (``heads.py``) and the command that builds it (``__main__.py``)."""
