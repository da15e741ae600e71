"""Other programs' files of weights and data, read without running anything in them."""
