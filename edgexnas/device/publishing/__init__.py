"""Frames sent as a detector sends them."""
