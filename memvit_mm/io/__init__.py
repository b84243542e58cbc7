"""Files: written as a whole or not at all, checkpoints read without running code."""
