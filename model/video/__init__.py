"""Video files → sampled frames. Training, indexing and the service share it, so that all sample alike."""
