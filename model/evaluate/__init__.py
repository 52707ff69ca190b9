"""``emcl evaluate``: encoded sets ranked under named protocols, and the tables that report it."""
