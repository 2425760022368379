"""A sender under examination: how it is driven, what it is put through, what is asked of it."""
