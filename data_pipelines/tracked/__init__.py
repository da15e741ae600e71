"""Data sets of real people, from the files that users have, through one tracker into the features of the heads data."""
