"""From sound to numbers that can drive a face: speech features by row, and their windows by video frame."""
