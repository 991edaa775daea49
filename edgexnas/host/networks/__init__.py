"""Search spaces and the networks that they build."""
