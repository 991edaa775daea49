"""From a trained network to a signed bundle."""
