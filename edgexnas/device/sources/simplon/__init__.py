"""Frames of DECTRIS detectors, Stream V2 over ZMQ."""
