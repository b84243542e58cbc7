"""Models from configs and checkpoints, their classes, and what they predict."""
