"""``emcl doctor``: checks of the installation, the machine, the index and its model."""
