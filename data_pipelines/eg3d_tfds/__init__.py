"""TFDS data set of single pictures with cameras, from a user's folder or zip: builder, command, reader."""
