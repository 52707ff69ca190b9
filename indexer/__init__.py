"""The indexer: turns folders of videos into a searchable store. Knows no web."""
