"""A run: its settings, its loop, and the folder that keeps it."""
