"""What an exported file says about itself."""

KEY = 'memvit_mm'
"""The entry of the file's metadata; JSON."""
FORMAT = 1
"""Raised when an older :class:`OnnxModel` could not run a newer file."""
