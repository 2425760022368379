"""What scripts/bench runs: the dispatcher beside its rivals, on this machine, in one run (docs/performance.md)."""
