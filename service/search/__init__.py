"""Search: queries, batching, the two stages, caches. Knows no web framework."""
