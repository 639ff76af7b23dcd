"""The other builders, those that are installed."""
