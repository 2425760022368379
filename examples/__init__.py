"""Examples that run as tests, each beside the input it works on."""
