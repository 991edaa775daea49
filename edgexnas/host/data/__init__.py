"""Labelled data: datasets, labels, splits, synthetic peaks and patterns."""
