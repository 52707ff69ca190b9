"""EMCL itself: the EM pass, its fast form for scoring, pooling of frames, and diagnostics."""
