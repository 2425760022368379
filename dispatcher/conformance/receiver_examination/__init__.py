"""A receiver under examination: what it is sent, and what it should have refused."""
