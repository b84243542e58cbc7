"""People in videos: boxes from functions, detectors and proposals, and tracks."""
