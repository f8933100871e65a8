"""`kshot WORDS` by two processes that torchrun could have started, without charts: `python -m app.in_group WORDS`."""

import sys
from importlib import import_module

from training.forked import by_processes

from kshot.app import cli
from kshot.evaluation.report import report

if __name__ == "__main__":
    for name in ("torch._dynamo", "kshot.app.execute", "kshot.app.spec", "kshot.learners", "kshot.evaluation"):
        import_module(name)  # once, and not in each process
    report._draw = lambda figures: ({}, [])
    sys.argv[0] = "kshot"
    by_processes(cli.main)
