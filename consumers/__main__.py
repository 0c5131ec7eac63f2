"""`python -m consumers`, the same as `tailrace`."""

from consumers.cli import main

main()
