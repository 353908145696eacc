"""What maintainers run: building and testing wheels."""
