"""Changes to the store of a running service: videos and captions added, edited, removed."""
