"""The demo corpus: generated scenes, their captions and their clips."""
