"""From a trained checkpoint to packed bits, and the proof that the two agree."""
