"""``emcl import-checkpoint``: checkpoints of other programs converted to ours."""
