"""The model: video decoding, CLIP towers, temporal aggregation, EMCL, training and evaluation. Knows no index."""
