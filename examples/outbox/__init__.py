"""A shop that publishes by its own transactions."""
