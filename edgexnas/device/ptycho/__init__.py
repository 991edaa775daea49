"""Ptychography: from diffraction patterns to an image of the object."""
