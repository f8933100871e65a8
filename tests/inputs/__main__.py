"""The long fuzz: `PYTHONPATH=tests python -m inputs 100000 [--first 0] [--keep DIR]`."""

from inputs.fuzz import main

main()
