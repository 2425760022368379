"""Invoices, texts and request logs go in as tasks; a service of its own receives the signed results."""
