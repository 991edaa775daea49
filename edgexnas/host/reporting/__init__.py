"""Reports and figures of a search."""
