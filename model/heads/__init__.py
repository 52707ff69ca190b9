"""Baselines that EMCL can be put on: what each computes becomes rows for the EM pass and comes back as similarities."""
