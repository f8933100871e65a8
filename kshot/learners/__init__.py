"""Factories of learners, one for each published method, and the classes that they compose.

- `gradient`: adapt a model's parameters by gradient descent (MAML and its relatives).
- `heads`: fit a head to the features of a shared embedding, for any number of ways and shots (ProtoNet and others).
- `amortised`: a network computes the task's state from the support set, without gradients (neural processes etc.).
- `pooling`: what groups share and how they differ, fitted to training groups in closed form.
- `ratings`: learners for recommendation. `baselines`: learners without meta-learning.

A factory raises ValueError for an argument outside the bounds of its annotation. Names are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
