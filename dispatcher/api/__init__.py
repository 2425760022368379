"""Everything that serves HTTP: the app, who may call it, the hot intake routes, the rest, problem details."""
