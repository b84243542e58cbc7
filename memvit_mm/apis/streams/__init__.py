"""Frames of videos and cameras in, predictions out: VideoStream and MultiStream."""
