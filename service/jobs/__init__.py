"""Batch jobs: the book that is the truth about them, the queue that carries their ids, and what runs them."""
