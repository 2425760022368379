"""A small webhook sender that is not ours, and what it takes to examine it with `dispatcher conformance run`."""
