"""What drives an avatar: motions from any file or from numbers, edited and moved between coefficient bases."""
