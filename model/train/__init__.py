"""``emcl train``: the loop, the step, and everything that a run keeps."""
