"""Sources on the network: what ADD and build contexts name by an URL, fetched over http or by git."""
