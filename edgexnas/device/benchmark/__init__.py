"""Latency and energy of inference, measured by protocols that others can repeat."""
