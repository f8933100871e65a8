"""Zero-order derivatives: estimated from values of a function at random points, as evolution strategies do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils._pytree import tree_map

from kshot.annotations import NonNegativeInt, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.kernels import in_transform
from kshot.inner.rules import UpdateRule
from kshot.inner.solvers import InnerSolver
from kshot.inner.unrolling import Loss, Steps, loss_arguments, trajectory
from kshot.types import Params, Tree


@check_arguments
def zero_order(
    function: Callable[[Params], Tree], params: Params, *, population: PositiveInt, sigma: PositiveFloat
) -> Tree:
    r"""The value of a function, with a derivative by its parameters that is estimated from values alone.

    $$ \frac{df}{d\theta} \approx \frac{1}{2 \sigma n} \sum_{i=1}^n \bigl(f(\theta + \sigma \epsilon_i) -
       f(\theta - \sigma \epsilon_i)\bigr) \epsilon_i^\top, \qquad \epsilon_i \sim \mathcal{N}(0, I) $$

    an unbiased estimate of the derivative of $\mathbb{E} f(\theta + \sigma \epsilon)$, which exists for any bounded f.
    There is no derivative by other tensors that the function uses, and no second derivative. With the loss after an
    adaptation for f, as a function of the initial parameters, it is ES-MAML.

    Args:
        function: (params) -> tree of real tensors; it needs no derivative, and no graph is stored.
        params: $\theta$, by name.
        population: n, pairs of opposite samples: 2 n + 1 values are computed, or 1 where no gradient is recorded.
        sigma: $\sigma > 0$.

    The samples are drawn from torch's generator. Under `vmap` pass `randomness="different"`.

    Example:
        >>> params = {"w": torch.tensor([3.0], requires_grad=True)}
        >>> value = zero_order(lambda params: params["w"].sum().round(), params, population=1000, sigma=1.0)
        >>> value.backward()
        >>> value, bool((params["w"].grad - 1).abs() < 0.2)
        (tensor(3., ...), True)

    References:
        Salimans et al.: Evolution Strategies as a Scalable Alternative to Reinforcement Learning, arXiv:1703.03864,
        without its ranking of values; Song et al.: ES-MAML, arXiv:1910.01215.
    """
    with torch.no_grad():
        value = function(_constant(params))
    estimate = _estimate(lambda: function, params, population, sigma)
    return value if estimate is None else tree_map(torch.add, value, estimate)


class Evolution(InnerSolver):
    r"""The derivative by the initial parameters is estimated from adaptations that start beside them.

    $$ \frac{d\theta_K}{d\theta_0} \approx I + \frac{1}{2 \sigma n} \sum_{i=1}^n \bigl(D(\theta_0 + \sigma \epsilon_i) -
       D(\theta_0 - \sigma \epsilon_i)\bigr) \epsilon_i^\top, \qquad D(\theta_0) = \theta_K - \theta_0 $$

    an unbiased estimate of that of $\mathbb{E}\, \theta_K(\theta_0 + \sigma \epsilon)$. No graph of the loss is stored,
    so memory does not grow with the number of steps, and the inner loss needs no derivative if `inner_population` is
    given; otherwise its gradients are those of autograd, as for any solver. The loss that is computed from the adapted
    parameters must have a derivative by them; where it has none, use `zero_order` around solver and loss. Buffers of a
    module do not change in the inner steps.

    Args:
        rule, steps: update rule and number of steps K. A rule with Parameters, or with tensors that require a gradient,
            raises ValueError: they would learn nothing. Other Parameters of the inner loss get no gradient through it.
        population: n, pairs of adaptations per gradient.
        sigma: $\sigma > 0$.
        inner_population: pairs of values of the inner loss that estimate each inner gradient, by the same formula with
            the loss for D, as ES-MAML does; None takes the gradients of autograd. Estimates have noise also for
            parameters that the loss does not use.
        inner_sigma: $\sigma$ of the inner gradients; by default that of the outer ones.

    Example:
        >>> solver = Evolution(kshot.inner.SGD(0.1), 3, population=4, sigma=0.1, inner_population=8)
        >>> start = {"w": torch.ones(2, requires_grad=True)}
        >>> solver(lambda params: (params["w"] > 0).float().sum(), start)["w"].requires_grad
        True

    References:
        Song et al.: ES-MAML: Simple Hessian-Free Meta Learning, arXiv:1910.01215; Salimans et al., arXiv:1703.03864.

    Deviations:
        The identity in the derivative is exact rather than sampled. The gradient of the outer loss by the adapted
        parameters is that of autograd; `zero_order` samples it too. Both adaptations of a pair draw the same inner
        samples.
    """

    @check_arguments
    def __init__(
        self,
        rule: UpdateRule,
        steps: NonNegativeInt,
        *,
        population: PositiveInt,
        sigma: PositiveFloat,
        inner_population: PositiveInt | None = None,
        inner_sigma: PositiveFloat | None = None,
    ) -> None:
        super().__init__(rule, steps)
        if any(tensor.requires_grad for tensor in (*rule.parameters(), *rule.buffers())):
            raise ValueError(
                "Evolution differentiates by the initial parameters only; this rule has Parameters or tensors that "
                "require a gradient, which would not learn. Fix them by requires_grad_(False), or use Unrolled"
            )
        self.population, self.sigma = population, sigma
        self.inner_population, self.inner_sigma = inner_population, sigma if inner_sigma is None else inner_sigma

    def exact(self, step: int, steps: int) -> bool:
        return False

    def trajectory(self, loss: Loss, params: Params, steps: Steps | None = None) -> list[Params]:
        batches = loss_arguments(self.steps if steps is None else steps)

        def draw() -> Callable[[Params], list[Params]]:
            noise = self._inner_noise(params, len(batches))
            return lambda start: [_difference(step, start) for step in self._path(loss, start, batches, noise)]

        with torch.no_grad():
            constant = _constant(params)
            path = list(self._path(loss, constant, batches, self._inner_noise(params, len(batches))))
        moves = _estimate(draw, params, self.population, self.sigma) if batches else None
        if moves is None:
            return [params, *path]
        zero = _difference(params, constant)  # with the identity as derivative
        return [params, *({n: step[n] + zero[n] + move[n] for n in params} for step, move in zip(path, moves))]

    def _inner_noise(self, params: Params, steps: int) -> list[list[Params]]:
        return [[_noise(params) for _ in range(self.inner_population or 0)] for _ in range(steps)]

    def _path(self, loss: Loss, params: Params, batches: list[tuple], noise: list[list[Params]]) -> Iterator[Params]:
        """The parameters after each step."""
        if self.inner_population is None:
            single = [batch[0] for batch in batches if batch]
            path = trajectory(loss, params, self.rule, single or len(batches))
            next(path)
            yield from path
            return
        state = self.rule.init(params)
        for batch, samples in zip(batches, noise):
            value_at = lambda candidate, batch=batch: loss(candidate, *batch)  # noqa: E731
            slopes = [(_slope(value_at, params, sample, self.inner_sigma), sample) for sample in samples]
            grads = {n: sum(slope * sample[n] for slope, sample in slopes) / len(slopes) for n in params}
            params, state = self.rule.update(grads, state, params)
            yield params


def _estimate(draw: Callable[[], Callable[[Params], Tree]], params: Params, population: int, sigma: float) -> Tree:
    """Zeros with the estimated derivative of a function, or None where no gradient is recorded.

    `draw` returns the function for a pair of samples, such as one with its own random numbers.
    """
    if not torch.is_grad_enabled() or not (in_transform() or any(p.requires_grad for p in params.values())):
        return None
    constant, total = _constant(params), None
    for _ in range(population):
        with torch.no_grad():
            noise = _noise(constant)
            slope = _slope(draw(), constant, noise, sigma)
        # 0, with the derivative noise
        zero = sum((noise[name] * (params[name] - constant[name])).sum() for name in params)
        terms = tree_map(lambda leaf, zero=zero: leaf * (zero / population).to(leaf.dtype), slope)
        total = terms if total is None else tree_map(torch.add, total, terms)
    return total


def _slope(function: Callable[[Params], Tree], params: Params, noise: Params, sigma: float) -> Tree:
    """Central difference of a function along the noise."""
    above = function({name: value + sigma * noise[name] for name, value in params.items()})
    below = function({name: value - sigma * noise[name] for name, value in params.items()})
    return tree_map(lambda a, b: (a - b) / (2 * sigma), above, below)


def _constant(params: Params) -> Params:
    return {name: value.detach() for name, value in params.items()}


def _noise(params: Params) -> Params:
    return {name: torch.randn_like(value) for name, value in params.items()}


def _difference(a: Params, b: Params) -> Params:
    return {name: value - b[name] for name, value in a.items()}
