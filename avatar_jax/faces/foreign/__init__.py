"""Other programs' files of face models and of the network that reads their coefficients from photographs."""

from avatar_jax.faces.foreign import bfm, flame, ict, recon

FOREIGN = (*recon.FOREIGN, *bfm.FOREIGN, *flame.FOREIGN, *ict.FOREIGN)
