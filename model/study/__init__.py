"""``emcl calibrate``, ``sweep`` and ``report``: which settings rank best, and what EMCL does to a model."""
