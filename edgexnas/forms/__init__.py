"""Forms of results that other programs read, and the tables of `edgexnas predict`."""
