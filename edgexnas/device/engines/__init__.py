"""The engines that run a bundle's models, behind one small interface."""
