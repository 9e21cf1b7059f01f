"""`python -m umo.cli`, for those that start several processes of it."""

from umo.cli import main

main()
