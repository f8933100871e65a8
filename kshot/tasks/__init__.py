from kshot.tasks.synthetic import sinusoids

__all__ = ["sinusoids"]
