"""`python -m ddfast`."""

from ddfast.cli import main

main()
