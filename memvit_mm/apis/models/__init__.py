"""Models from configs and checkpoints, and the names of their classes."""
