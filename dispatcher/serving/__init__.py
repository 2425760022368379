"""Processes: what one is made of, how it starts and stops, and how several of them stand together."""
