"""What a candidate costs: latency, energy, size."""
