"""One script for a GPU: builds, tests, checks and measures what there is, in order of worth, within given minutes."""
