"""Where a service's frames come from, behind one form of URL."""
