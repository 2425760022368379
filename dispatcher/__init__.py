"""Takes tasks and events in, gets signed deliveries out."""
