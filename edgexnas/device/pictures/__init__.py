"""Pictures of frames and objects, for the web page and beside object files."""
