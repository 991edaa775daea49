"""Bragg peaks: from detector frames to peak positions."""
