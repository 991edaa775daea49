"""The streaming service: from a source's frames to results in files and on the network."""
