"""Frames over EPICS PV Access."""
