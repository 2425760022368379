"""Who receives, and how a message proves itself: keys at rest, secrets, signatures. A leaf of the imports."""
