"""Loss terms: plain functions on arrays [B,H,W,C] in [-1, 1]. Each returns a scalar, averaged over the batch."""
