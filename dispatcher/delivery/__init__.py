"""Getting deliveries out: resolve, connect, send, settle."""
