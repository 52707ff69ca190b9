"""``emcl export``: towers for a faster runtime, accepted only if they rank as fp32 does."""
