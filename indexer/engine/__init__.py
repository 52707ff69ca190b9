"""Stage 1 on an external vector engine, which holds rows derived from a store and follows its changes."""
