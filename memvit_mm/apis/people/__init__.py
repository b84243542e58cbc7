"""People in videos: boxes from detectors and proposals, tracks, proposal files."""
