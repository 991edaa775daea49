"""Where the results of a service go."""
