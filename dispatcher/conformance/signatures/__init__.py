"""Verifying and making signatures, written for the kit alone."""
