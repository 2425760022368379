"""Programs that run in .venv-bench, each on its own: they share no code with us, and send the same payload."""
