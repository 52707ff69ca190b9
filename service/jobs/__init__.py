"""Batch jobs: the job store that is the truth about them, the queue that carries their ids, and what runs them."""
