"""AVA's person proposals: detected in videos, and kept until all are there."""
