"""`python -m agent`, where the console script is not installed."""

from agent.cli import main

main()
