"""Each algorithm against its paper's update written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kshot
from kshot import Batch, Task, objectives
from kshot.inner import SGD, Alfa, FirstOrder, GatedRule, Unrolled
from kshot.inner.learned_rules import log_scale
from kshot.learners import GradientLearner
from kshot.learners.gradient.outer_losses import MultiStepLoss

RATE = 0.1


@pytest.fixture
def task():
    x = torch.randn(8, 3, dtype=torch.float64)
    batch = lambda part: Batch(x[part], F.one_hot(torch.arange(4) % 2).double(), torch.ones(4).double())  # noqa: E731
    return Task(batch(slice(0, 4)), batch(slice(4, 8)))


def net(*middle):
    return nn.Sequential(nn.Linear(3, 4), *middle, nn.Tanh(), nn.Linear(4, 2)).double()


def gradient(model, params, batch, **options):
    loss = F.cross_entropy(torch.func.functional_call(model, params, (batch.inputs,)), batch.targets)
    return dict(zip(params, torch.autograd.grad(loss, list(params.values()), **options)))


def descend(model, task, steps, names=None, rate=RATE):
    """Gradient descent on the support set, by hand; only `names` move."""
    params = dict(model.named_parameters())
    for _ in range(steps):
        grads = gradient(model, params, task.support, create_graph=True)
        params = {n: v - rate * grads[n] if names is None or n in names else v for n, v in params.items()}
    return params


def close(found, expected):
    assert set(found) <= set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


def test_reptile_moves_towards_where_descent_ends(task):
    model = net()
    both = Task(Batch(*(torch.cat(pair) for pair in zip(*task))), task.query)
    for train_on, examples in (("both", both), ("support", task)):
        model.zero_grad()
        learner = kshot.learners.reptile(model, inner_lr=RATE, steps=3, train_on=train_on)
        loss = learner(task)
        loss.backward()
        end = descend(model, examples, 3)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, (parameter - end[name]).detach())
        logits = torch.func.functional_call(model, end, (task.query.inputs,))
        torch.testing.assert_close(loss, F.cross_entropy(logits, task.query.targets))


def test_fomaml_is_maml_of_first_order(task):
    found = []
    for learner in (
        kshot.learners.fomaml(net(), inner_lr=RATE, steps=2),
        kshot.maml(net(), inner_lr=RATE, steps=2, order=1),
    ):
        learner.model.load_state_dict(found[0][0] if found else learner.model.state_dict())
        learner(task).backward()
        found.append((learner.model.state_dict(), {n: p.grad for n, p in learner.named_parameters()}))
    close(found[0][1], found[1][1])


@pytest.mark.parametrize(("factory", "names"), [("anil", ("2.weight", "2.bias")), ("boil", ("0.weight", "0.bias"))])
def test_anil_moves_the_head_and_boil_the_body(task, factory, names):
    model = net()
    learner = getattr(kshot.learners, factory)(model, inner_lr=RATE, steps=3, head="2")
    found = learner.adapt(task.support)["params"]
    assert set(found) == set(names)
    close(found, descend(model, task, 3, names))


def test_meta_sgd_has_a_rate_for_each_element(task):
    model = net()
    learner = kshot.learners.meta_sgd(model, inner_lr=RATE)
    rates = learner.solver.rule.inner_lr.rates
    for parameter in rates.parameters():
        nn.init.normal_(parameter)
    grads = gradient(model, dict(model.named_parameters()), task.support)
    expected = {name: value - rates[name] * grads[name] for name, value in model.named_parameters()}
    close(learner.adapt(task.support)["params"], expected)


def test_meta_curvature_multiplies_along_each_mode():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten()).double()
    learner = kshot.learners.meta_curvature(model, inner_lr=RATE)
    for parameter in learner.solver.rule.parameters():
        nn.init.normal_(parameter)
    support = Batch(torch.randn(4, 2, 2, 2).double(), F.one_hot(torch.arange(4) % 3).double(), torch.ones(4).double())
    grad = gradient(model, dict(model.named_parameters()), support)["0.weight"]
    out, inside, place = (learner.solver.rule.transforms[0].matrices[f"0.weight.mode{mode}"] for mode in range(3))
    expected = torch.einsum("ao,bi,cf,oif->abc", out, inside, place, grad.flatten(2)).view_as(grad)
    found = learner.adapt(support)["params"]["0.weight"]
    torch.testing.assert_close(found, model[0].weight - RATE * expected)


def test_alfa_generates_rates_and_decays_from_means():
    params = {"a": torch.randn(2, 3), "b": torch.randn(2)}
    grads = {name: torch.randn_like(value) for name, value in params.items()}
    rule = Alfa(params, 0.3, steps=2)
    for parameter in rule.parameters():
        nn.init.normal_(parameter)
    means = [grads["a"].mean(), grads["b"].mean(), params["a"].mean(), params["b"].mean()]
    made = 1 + rule.generator(torch.stack(means))
    found, _ = rule.update(grads, {"step": 1}, params)
    for i, name in enumerate(params):
        rate, decay = rule.rate[1, i] * made[i], rule.decay[1, i] * made[2 + i]
        torch.testing.assert_close(found[name], decay * params[name] - rate * grads[name])


def test_the_gated_rule_is_the_meta_lstm():
    rule, params, grads = GatedRule(0.1, keep=0.9), {"w": torch.randn(4)}, {"w": torch.randn(4)}
    for parameter in rule.parameters():
        nn.init.normal_(parameter)
    state = rule.init(params)
    found, _ = rule.update(grads, state, params)
    seen = torch.cat([log_scale(grads["w"]), params["w"][:, None]], 1)
    keep, rate = (
        torch.sigmoid(torch.cat([seen, before[:, None]], 1) @ gate.weight[0] + gate.bias)
        for gate, before in zip(rule.gates, state)
    )
    torch.testing.assert_close(found["w"], keep * params["w"] - rate * grads["w"])


@pytest.mark.parametrize("kind", ["lstm", "mlp", "gates"])
def test_a_learned_optimiser_learns(task, kind):
    learner = kshot.learners.learned_optimizer(net(), inner_lr=RATE, steps=3, kind=kind)
    optimizer = torch.optim.Adam(learner.solver.parameters(), 0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = learner(Task(task.support, task.support))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_weights_of_the_steps_go_from_equal_to_the_last():
    weigh = MultiStepLoss(until=0.5).weights
    assert weigh(4, 0.0) == [0.25] * 4
    assert weigh(4, 0.25) == [0.125] * 3 + [0.625]
    assert weigh(4, 0.5) == weigh(4, 1.0) == [0.0] * 3 + [1.0]


def test_maml_pp_weighs_the_loss_after_each_step(task):
    model = net()
    learner = kshot.learners.maml_pp(model, inner_lr=RATE, steps=2, multi_step=0.5, first_order=0.0)
    learner.set_progress(0.25)
    losses = []
    for steps in (1, 2):
        logits = torch.func.functional_call(model, descend(model, task, steps), (task.query.inputs,))
        losses.append(F.cross_entropy(logits, task.query.targets))
    expected = 0.25 * losses[0] + 0.75 * losses[1]
    torch.testing.assert_close(learner(task), expected)
    learner(task).backward()
    grads = torch.autograd.grad(expected, list(model.parameters()))
    for parameter, grad in zip(model.parameters(), grads):
        torch.testing.assert_close(parameter.grad, grad)


def test_maml_pp_is_first_order_at_first(task):
    learner = kshot.learners.maml_pp(net(), inner_lr=RATE, steps=2, multi_step=0.0, first_order=0.3)
    plain = GradientLearner(learner.model, learner.objective, FirstOrder(SGD(RATE), 2))
    exact = GradientLearner(learner.model, learner.objective, Unrolled(SGD(RATE), 2))
    for progress, peer in ((0.1, plain), (0.3, exact), (1.0, exact)):
        learner.set_progress(progress)
        found = [
            torch.autograd.grad(each(task), list(learner.model.parameters()), allow_unused=True)
            for each in (learner, peer)
        ]
        torch.testing.assert_close(*found)


def test_maml_pp_has_batchnorm_of_its_own_at_each_step(task):
    model = net(nn.BatchNorm1d(4))
    learner = kshot.learners.maml_pp(model, inner_lr=RATE, steps=2)
    for parameter in learner.per_step.parameters():
        nn.init.normal_(parameter)
    inner = [name for name, _ in model.named_parameters() if not name.startswith("1.")]
    params = dict(model.named_parameters())
    for step in range(2):
        own = params | {name: learner.per_step.values[name][step] for name in ("1.weight", "1.bias")}
        grads = gradient(model.train(), own, task.support, create_graph=True)
        params = {n: v - RATE * grads[n] if n in inner else v for n, v in params.items()}
    close(learner.adapt(task.support)["params"], params)
    learner(task).backward()
    assert all(p.grad.abs().sum() > 0 for n, p in learner.named_parameters() if n != "model.0.bias")


def test_the_trainer_tells_how_far_it_is():
    learner, seen = kshot.learners.maml_pp(nn.Linear(1, 1), inner_lr=0.01, objective=objectives.mse), []
    learner.set_progress = seen.append
    kshot.fit(learner, kshot.sources.sinusoids(), steps=4)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_proto_maml_without_steps_is_the_prototypical_network(task):
    embedding = nn.Linear(3, 5).double()
    one = kshot.learners.proto_maml(embedding, inner_lr=RATE, steps=0)
    other = kshot.protonet(embedding)
    logits = [learner.predict(learner.adapt(task.support), task.query.inputs).softmax(1) for learner in (one, other)]
    torch.testing.assert_close(*logits)


def test_proto_maml_adapts_head_and_embedding_together(task):
    embedding = nn.Linear(3, 5).double()
    features, targets = embedding(task.support.inputs), task.support.targets
    proto = (targets.T @ features) / 2
    head = {"weight": 2 * proto, "bias": -(proto**2).sum(1)}
    body = dict(embedding.named_parameters())
    loss = F.cross_entropy(F.linear(features, head["weight"].detach(), head["bias"].detach()), targets)
    moved = dict(zip(body, torch.autograd.grad(loss, list(body.values()), retain_graph=True)))
    logits = F.linear(features.detach(), head["weight"], head["bias"])
    moved_head = dict(zip(head, torch.autograd.grad(F.cross_entropy(logits, targets), list(head.values()))))
    found = kshot.learners.proto_maml(embedding, inner_lr=RATE, steps=1).adapt(task.support)["params"]
    for name, value in body.items():
        torch.testing.assert_close(found[f"embedding.{name}"], value - RATE * moved[name])
    close({n: found[n] for n in head}, {n: v - RATE * moved_head[n] for n, v in head.items()})


def test_unicorn_maml_does_not_see_the_order_of_the_classes(task):
    learner = kshot.learners.unicorn_maml(nn.Linear(3, 5).double(), features=5, inner_lr=RATE, steps=3)
    assert torch.equal(learner.adapt(task.support, steps=0)["params"]["weight"][0], learner.head_init.vector)
    turned = Batch(task.support.inputs, task.support.targets.flip(1), task.support.weight)
    logits = [learner.predict(learner.adapt(support), task.query.inputs) for support in (task.support, turned)]
    torch.testing.assert_close(logits[0], logits[1].flip(1))


def test_unicorn_maml_descends_from_one_vector_for_all_classes(task):
    embedding = net()
    learner = kshot.learners.unicorn_maml(embedding, features=2, inner_lr=RATE, steps=2)
    model = nn.Sequential(embedding, nn.Linear(2, 2).double())
    params = dict(model.named_parameters()) | {
        "1.weight": learner.head_init.vector.expand(2, 2),
        "1.bias": torch.zeros(2, dtype=torch.float64, requires_grad=True),
    }
    for _ in range(2):
        grads = gradient(model, params, task.support, create_graph=True)
        params = {name: value - RATE * grads[name] for name, value in params.items()}
    expected = torch.func.functional_call(model, params, (task.query.inputs,))
    torch.testing.assert_close(learner.predict(learner.adapt(task.support), task.query.inputs), expected)
    found = torch.autograd.grad(learner(task), learner.head_init.vector)
    loss = F.cross_entropy(expected, task.query.targets)
    torch.testing.assert_close(found, torch.autograd.grad(loss, learner.head_init.vector))


def test_melu_moves_the_layers_above_the_embeddings_and_warp_maml_all_but_the_warps(task):
    model = net(nn.Linear(4, 4))
    learner = kshot.learners.warp_maml(model, warp="1.*", inner_lr=RATE, steps=2)
    moved = ["0.weight", "0.bias", "3.weight", "3.bias"]
    close(learner.adapt(task.support)["params"], descend(model, task, 2, moved))
    rating = kshot.models.rating_mlp(5, 0, hidden=(4,)).double()
    support = Batch({"item": torch.tensor([1, 2, 4])}, torch.randn(3, 1, dtype=torch.float64), torch.ones(3).double())
    params = dict(rating.named_parameters())
    above = {name: value for name, value in params.items() if name.startswith(("body.", "head."))}
    assert set(above) < set(params)
    loss = F.mse_loss(rating(**support.inputs), support.targets)
    grads = dict(zip(above, torch.autograd.grad(loss, list(above.values()))))
    expected = {name: value - RATE * grads[name] for name, value in above.items()}
    found = kshot.learners.melu(rating, inner_lr=RATE).adapt(support)["params"]
    assert set(found) == set(above)
    close(found, expected)


def test_maml_pp_has_one_set_more_of_batchnorm_than_steps(task):
    """The queries after step k are normalised by the set of the pass that follows, the last ones by the model's own."""
    model = net(nn.BatchNorm1d(4))
    learner = kshot.learners.maml_pp(model, inner_lr=RATE, steps=2).double()
    with torch.no_grad():
        for name in ("1.weight", "1.bias"):
            learner.per_step.values[name].copy_(torch.tensor([[2.0], [3.0]]).expand(2, 4))
    *earlier, last = learner.trajectory(task.support)
    assert [float(state["params"]["1.weight"][0].detach()) for state in earlier] == [2.0, 3.0]
    assert not set(last["params"]) & {"1.weight", "1.bias"}


def test_a_head_of_a_task_may_adapt_alone_with_part_of_the_body(task):
    learner = kshot.learners.proto_maml(net(), inner_lr=RATE, adaptable=("*", "!0.*"))
    names = set(learner.adapt(task.support)["params"])
    assert names == {"embedding.2.weight", "embedding.2.bias", "weight", "bias"}


def test_cavia_moves_the_context_alone(task):
    model = nn.Linear(3 + 2, 2).double()
    context, weight = torch.zeros(2, dtype=torch.float64, requires_grad=True), model.weight
    for _ in range(2):
        logits = model(torch.cat([task.support.inputs, context.expand(4, 2)], 1))
        (grad,) = torch.autograd.grad(F.cross_entropy(logits, task.support.targets), context, create_graph=True)
        context = context - RATE * grad
    learner = kshot.learners.cavia(model, task_dim=2, inner_lr=RATE, steps=2)
    close(learner.adapt(task.support)["params"], {"context": context})
    assert [name for name, _ in learner.named_parameters()] == ["model.model.weight", "model.model.bias"]
    assert weight is model.weight


def test_film_modulates_channels_and_leaves_no_hook(task):
    model = net()
    learner = kshot.learners.cavia(model, task_dim=2, inner_lr=RATE, film=["0"])
    conditioned = learner.model
    conditioned.context = torch.randn(2).double()
    scale, shift = (conditioned.modulations[0].weight @ conditioned.context).chunk(2)
    expected = model[2](torch.tanh(model[0](task.query.inputs) * (1 + scale) + shift))
    torch.testing.assert_close(conditioned(task.query.inputs), expected)
    assert not model[0]._forward_hooks


def test_t_net_descends_in_a_metric_of_its_own(task):
    learner = kshot.learners.t_net(nn.Linear(3, 2).double(), inner_lr=RATE)
    layer, warp = learner.model.layer, learner.model.warp
    nn.init.normal_(warp.weight)
    support = task.support
    slope = (layer(support.inputs) @ warp.weight.T).softmax(1) - support.targets  # (n, 2)
    expected = layer.weight - RATE * (slope @ warp.weight).T @ support.inputs / 4
    torch.testing.assert_close(learner.adapt(support)["params"]["layer.weight"], expected)


def test_minibatches_take_turns(task):
    model = net()
    learner = GradientLearner(model, objectives.classification, Unrolled(SGD(RATE), 3), minibatch=2)
    params = dict(model.named_parameters())
    for rows in ([0, 2], [1, 3], [0, 2]):
        grads = gradient(model, params, task.support.rows(torch.tensor(rows)), create_graph=True)
        params = {name: value - RATE * grads[name] for name, value in params.items()}
    close(learner.adapt(task.support)["params"], params)


def test_a_trajectory_of_states_ends_where_adapting_does(task):
    learner = kshot.maml(net(), inner_lr=RATE, steps=3)
    states = learner.trajectory(task.support)
    assert len(states) == 4
    close(states[-1]["params"], learner.adapt(task.support)["params"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: kshot.learners.reptile(net(), inner_lr=0.1, train_on="query"),
            "train_on must be one of support, both",
        ),
        (lambda: kshot.learners.anil(net(), inner_lr=0.1, head="top"), "no trainable parameter .*'top"),
        (lambda: kshot.learners.boil(net(), inner_lr=0.1, head="top"), "no trainable parameter .*'top"),
        (lambda: kshot.learners.maml_pp(net(), inner_lr=0.1, multi_step=2.0), "until must be"),
        (lambda: kshot.learners.maml_pp(net(), inner_lr=0.1, first_order=-1.0), "until must be"),
        (lambda: kshot.learners.cavia(net(), inner_lr=0.1, task_dim=0), "task_dim must be at least 1"),
        (
            lambda: kshot.learners.cavia(net(), inner_lr=0.1, task_dim=2, film=["9"]),
            "no layer '9' to modulate; its layers are: 0, 1, 2",
        ),
        (
            lambda: kshot.learners.cavia(net(), inner_lr=0.1, task_dim=2, film=["1"]),
            r"channels of layer '1' \(Tanh\) is unknown",
        ),
        (lambda: kshot.learners.unicorn_maml(net(), features=0, inner_lr=0.1), "features must be at least 1"),
        (lambda: kshot.learners.warp_maml(net(), warp="warp.*", inner_lr=0.1), "no trainable parameter"),
        (
            lambda: kshot.learners.learned_optimizer(net(), inner_lr=0.1, kind="gru"),
            "kind must be one of lstm, mlp, gates",
        ),
        (lambda: kshot.learners.alfa(net(), inner_lr=0.1, steps=0), "steps must be at least 1"),
        (lambda: GradientLearner(net(), objectives.mse, Unrolled(SGD(0.1), 1), minibatch=0), "minibatch must be"),
        (lambda: GatedRule(1.5), "inner_lr must be above 0 and below 1"),
    ],
)
def test_bad_arguments_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_for_appended_context_are_told_the_way_out():
    learner = kshot.learners.cavia(nn.Flatten(), task_dim=2, inner_lr=0.1)
    with pytest.raises(ValueError, match="name the layers to modulate"):
        learner.adapt(Batch.of(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), ways=2))
