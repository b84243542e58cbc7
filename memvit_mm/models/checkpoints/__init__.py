"""Checkpoints of published models, of the model zoo and of our own: read, convert."""
