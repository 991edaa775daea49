"""Frames of files, also while these are written."""
