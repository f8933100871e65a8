"""Transductive fine-tuning: gradient steps on the support set and on the entropy of the queries' predictions.

A prediction depends on the other queries, so all queries of a task belong in one call of `predict`; padding does not,
unless its weight is given (see `kshot.query_weight`). Its figures are not comparable to inductive ones.

Shape legend: M query rows, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import DerivativeOrder, NonNegativeFloat, NonNegativeInt, PositiveFloat
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm, Function
from kshot.inner.per_parameter import adaptable_params
from kshot.inner.rules import Adam
from kshot.inner.solvers import InnerSolver
from kshot.learner import Learner
from kshot.learners.gradient.gradient_learner import make_solver
from kshot.learners.gradient.proto_maml import Headed, PrototypeInit
from kshot.objectives import Objective, classes_present, only_present, refuse_parts, weighted_mean
from kshot.query_weight import current_query_weight, query_weight
from kshot.supplied import Embedding
from kshot.types import Batch, Params, Tree, tree_leaves


class TransductiveTuner(Learner):
    r"""Tunes a model on a task's support set and, by the entropy of its predictions, on the queries.

    The state is the support set, since the queries are needed too: `predict` tunes, at the cost that `adapt` has in
    other learners.

    Args:
        embedding: inputs (n, ...) to features (n, ...); each task gets a linear head of its own.
        objective: loss and metrics of the tasks.
        solver: solves the inner problem, and defines how its solution is differentiated.
        entropy: weight of the queries' entropy.
        batchnorm: statistics that BatchNorm uses for a query.
    """

    transductive = True

    @check_arguments
    def __init__(
        self,
        embedding: nn.Module,
        objective: Objective,
        solver: InnerSolver,
        *,
        entropy: NonNegativeFloat,
        batchnorm: BatchNorm,
    ) -> None:
        super().__init__(objective)
        refuse_parts(objective, "transductive fine-tuning")
        self.model, self.solver, self.head_init, self.entropy = Headed(embedding), solver, PrototypeInit(), entropy
        self.function = Function(self.model, batchnorm)
        self.task_norm = self.function.task_norm

    def _adapt(self, support: Batch) -> Tree:
        return support._asdict()

    def predict(self, state: Tree, inputs: Tree) -> Tensor:
        support = Batch(**state)
        initial = adaptable_params(self.model) | self.head_init(self.function, support)
        weight = current_query_weight(len(tree_leaves(inputs)[0]), like=support.weight)
        params = self.solver(self._loss, initial, [(support, inputs, weight)] * self.solver.steps)
        return self._logits(params, support, inputs)[1]

    def _loss(self, params: Params, examples: tuple[Batch, Tree, Tensor]) -> Tensor:
        support, inputs, weight = examples
        with query_weight(weight):  # again, since a step may be recomputed in the backward pass
            support_logits, query_logits = self._logits(params, support, inputs)
        entropy_M = -(query_logits.softmax(1) * query_logits.log_softmax(1)).sum(1)
        entropy = weighted_mean(entropy_M, weight)
        return self.objective.loss(support_logits, support) + self.entropy * entropy

    def _logits(self, params: Params, support: Batch, inputs: Tree) -> tuple[Tensor, Tensor]:
        """Logits of the support set and of the queries."""
        output, statistics = self.function.support(params, support)
        support_logits = self.objective.scored(output)
        query_logits = self.objective.scored(self.function.query(params, statistics, inputs))
        present = classes_present(support)
        return only_present(support_logits, present), only_present(query_logits, present)


def transductive_fine_tune(
    embedding: Embedding,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 25,
    entropy: NonNegativeFloat = 1.0,
    order: DerivativeOrder = 1,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> TransductiveTuner:
    r"""Transductive fine-tuning: all weights are fitted to the support set and to confident predictions for queries.

    $$ \min_{\theta, W, b} \; L_{\text{support}} + \beta \, \frac{\sum_m w_m H(p(y \mid x_m))}{\sum_m w_m}, \qquad
       p(y \mid x) = \mathrm{softmax}(W f_\theta(x) + b) $$

    with weights $w_m$ of the queries, which are 0 for padding.

    Args:
        embedding: pretrained by `kshot.pretrain`: inputs (n, ...) to features (n, ...).
        inner_lr: learning rate of Adam.
        steps: number of gradient steps on support and queries.
        entropy: $\beta$.
        order: if the learner is meta-trained, 1 differentiates the steps to first order, 2 exactly.
        objective, batchnorm: as in `maml`.

    Example:
        >>> learner = transductive_fine_tune(nn.Linear(2, 3), inner_lr=0.01, steps=3)
        >>> support = kshot.Batch.of(torch.eye(2), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[2.0, 0.0], [0.0, 3.0]])).shape
        torch.Size([2, 2])

    References:
        Dhillon, Chaudhari, Ravichandran, Soatto: A Baseline for Few-Shot Image Classification, ICLR 2020,
        arXiv:1909.02729.

    Deviations:
        The head is linear, on the embedding's features, and starts as the classifier of nearest class means (see
        `proto_maml`); the paper's is a cosine classifier on the rectified logits of the pretrained network, with the
        class means at unit length as its weights. Each step sees all examples, rather than a support batch and a query
        batch in turn. Images are not augmented, and the rate is the same for all steps.
    """
    solver = make_solver(order, Adam(inner_lr), steps)
    return TransductiveTuner(embedding, objective, solver, entropy=entropy, batchnorm=batchnorm)
