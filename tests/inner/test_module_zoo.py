"""Any module: one exact second-order meta-step of each kind against a loop written with torch.autograd.grad."""

import copy
import gc
import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import spectral_norm

import kshot
from kshot import Batch, Task
from kshot.inner import SGD, unroll
from kshot.inner.vmap_overrides import rrelu
from kshot.models import resnet12
from kshot.training.step import MetaGradient, meta_gradient
from kshot.types import stack

RATE, STEPS = 0.1, 2

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn, self.out = kind(3, 4, batch_first=True, **options), nn.LazyLinear(2)
        self(torch.zeros(1, 5, 3))

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


class Cells(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.cell, self.out = kind(3, 4, **options), nn.Linear(4, 2)

    def forward(self, x):
        state = None
        for row in x.unbind(1):
            state = self.cell(row, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class Attention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.mha, self.out, self.need_weights = (
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, 2),
            need_weights,
        )

    def forward(self, x):
        x = F.pad(x, (0, 1))
        return self.out(self.mha(x, x, x, need_weights=self.need_weights)[0].mean(1))


class Fused(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(3, 12), nn.Linear(4, 2), causal

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 2)).unbind(-3)
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2).mean(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, activation="gelu")
        self.body, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.body(F.pad(x, (0, 1))).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(7, 3, padding_idx=0), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.words(x).sum(1)))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.used(x).tanh()


class Counting(nn.Module):
    """Changes its buffers in each forward: in place by a constant, and by assignment from the data."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        self.calls += 1
        self.seen = 0.9 * self.seen + 0.1 * x.detach().mean(0)
        return self.out(x - self.seen).tanh()


class Mixed(nn.Module):
    """Float32 inside a float64 model."""

    def __init__(self):
        super().__init__()
        self.low, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.low.float()
        return self

    def forward(self, x):
        return self.out(self.low(x.float()).tanh().to(x))


class Running(nn.Module):
    """Changes a buffer in place from the data."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.mean.mul_(0.9).add_(x.detach().mean(0))
        return x - self.mean


class Gathering(nn.Module):
    """Adds to a tensor of its own making."""

    def forward(self, x):
        total = torch.zeros(3, dtype=x.dtype)
        total += x.mean(0)
        return x - total


class Classes(nn.Module):
    """A model of `transformers` as classes: its logits, or those of one word for each class after the last token."""

    def __init__(self, model, words=None):
        super().__init__()
        self.model, self.words = model, words

    def forward(self, input_ids, attention_mask):
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits if self.words is None else logits[:, -1, self.words]


def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'text'")


def bert():
    lib = transformers()
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = lib.BertConfig(vocab_size=7, max_position_embeddings=6, num_labels=2, **sizes)
    return Classes(lib.BertForSequenceClassification(config))


def lora(**options):
    """GPT-2 with LoRA on its attention."""
    lib = transformers()
    peft = pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'text'")
    ends = {"bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "eager"}
    model = lib.GPT2LMHeadModel(lib.GPT2Config(vocab_size=7, n_positions=6, n_embd=8, n_layer=2, n_head=2, **ends))
    with warnings.catch_warnings():  # peft asks transformers by a name that is going
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapters = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, **options)
        return Classes(peft.get_peft_model(model, adapters), words=[2, 5])


def frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    return model


def conv(*norm):
    return nn.Sequential(nn.Conv2d(1, 4, 3), *norm, nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 2))


def mlp(*middle):
    return nn.Sequential(nn.Linear(3, 5), *middle, nn.Linear(5, 2))


VECTOR, IMAGE, SEQUENCE, PICTURE = (3,), (1, 5, 5), (5, 3), (1, 32, 32)
IDS, TOKENS = "ids (n, 4)", "ids and attention mask (n, 6)"
ZOO = {
    "mlp": (lambda: mlp(nn.Tanh()), VECTOR),
    "conv, BatchNorm on support": (lambda: conv(nn.BatchNorm2d(4)), IMAGE, "support"),
    "conv, BatchNorm on query": (lambda: conv(nn.BatchNorm2d(4)), IMAGE, "query"),
    "conv, BatchNorm running": (lambda: conv(nn.BatchNorm2d(4)), IMAGE, "running"),
    "GroupNorm": (lambda: conv(nn.GroupNorm(2, 4)), IMAGE),
    "LayerNorm": (lambda: mlp(nn.LayerNorm(5), nn.GELU()), VECTOR),
    "RMSNorm": (lambda: mlp(nn.RMSNorm(5), nn.GELU()), VECTOR),
    "InstanceNorm": (lambda: conv(nn.InstanceNorm2d(4, affine=True)), IMAGE),
    "max pooling": (lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2)), IMAGE),
    "LSTM": (lambda: Recurrent(nn.LSTM), SEQUENCE),
    "LSTM, two layers, both ways": (lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), SEQUENCE),
    "GRU": (lambda: Recurrent(nn.GRU), SEQUENCE),
    "RNN": (lambda: Recurrent(nn.RNN), SEQUENCE),
    "LSTM with a projection": (lambda: Recurrent(nn.LSTM, proj_size=2, num_layers=2, bidirectional=True), SEQUENCE),
    "LSTMCell": (lambda: Cells(nn.LSTMCell), SEQUENCE),
    "GRUCell": (lambda: Cells(nn.GRUCell), SEQUENCE),
    "GRUCell without bias": (lambda: Cells(nn.GRUCell, bias=False), SEQUENCE),
    "RNNCell": (lambda: Cells(nn.RNNCell), SEQUENCE),
    "RNNCell, ReLU": (lambda: Cells(nn.RNNCell, nonlinearity="relu"), SEQUENCE),
    "MultiheadAttention": (lambda: Attention(False), SEQUENCE),
    "MultiheadAttention, weights": (lambda: Attention(True), SEQUENCE),
    "fused attention": (lambda: Fused(False), SEQUENCE),
    "fused attention, causal": (lambda: Fused(True), SEQUENCE),
    "TransformerEncoder": (Encoder, SEQUENCE),
    "spectral norm": (lambda: mlp(spectral_norm(nn.Linear(5, 5)), nn.Tanh()), VECTOR),
    "spectral norm by hooks": (lambda: mlp(torch.nn.utils.spectral_norm(nn.Linear(5, 5)), nn.Tanh()), VECTOR),
    "RReLU of one slope": (lambda: mlp(nn.RReLU(0.3, 0.3)), VECTOR),
    "RReLU": (lambda: mlp(nn.RReLU(0.1, 0.9)), VECTOR),
    "dropout": (lambda: mlp(nn.Tanh(), nn.Dropout(0.5)), VECTOR),
    "tied weights": (Tied, VECTOR),
    "embedding": (Words, IDS),
    "unused parameters": (Unused, VECTOR),
    "frozen parameters": (frozen, VECTOR),
    "buffers": (Counting, VECTOR),
    "buffers in place": (lambda: nn.Sequential(Running(), nn.Linear(3, 2), nn.Tanh()), VECTOR),
    "in-place ReLU": (lambda: mlp(nn.ReLU(inplace=True)), VECTOR),
    "mixed dtypes": (Mixed, VECTOR),
    "ResNet-12 with DropBlock": (lambda: resnet12(1, 2, widths=(3, 3, 4, 4), block_size=2), PICTURE, "query"),
    "BERT": (bert, TOKENS),
    "causal language model with LoRA": (lambda: lora(init_lora_weights=False), TOKENS),
}
rows = pytest.mark.parametrize("row", ZOO.values(), ids=ZOO.keys())


def make(row):
    build, shape, *batchnorm = row
    torch.manual_seed(0)
    model = build().double()
    if batchnorm == ["running"]:
        model(torch.randn(20, *shape, dtype=torch.float64) * 2 + 1)
    tasks = []
    for _ in range(2):
        batch = Batch(examples(shape), F.one_hot(torch.arange(10) % 2).double(), torch.ones(10, dtype=torch.float64))
        tasks.append(Task(batch.rows(slice(6)), batch.rows(slice(6, None))))
    return model, tasks, *(batchnorm or ["support"])


def examples(shape):
    """Inputs of ten examples."""
    if shape == IDS:
        return torch.randint(0, 7, (10, 4))
    if shape == TOKENS:
        ids, lengths = torch.randint(1, 7, (10, 6)), torch.arange(10) % 3 + 4
        mask = (torch.arange(6) >= 6 - lengths[:, None]).long()  # padded on the left
        return {"input_ids": ids * mask, "attention_mask": mask}
    return torch.randn(10, *shape, dtype=torch.float64)


class FirstRows(nn.Module):
    """BatchNorm by the statistics of the first rows, written out."""

    def __init__(self, norm, rows):
        super().__init__()
        self.weight, self.bias, self.eps, self.rows = norm.weight, norm.bias, norm.eps, rows

    def forward(self, x):
        var, mean = torch.var_mean(x[: self.rows], (0, 2, 3), keepdim=True, correction=0)
        return (x - mean) / (var + self.eps).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


def reference(model, task, batchnorm):
    """The exact outer gradient, in the plainest way that there is."""
    together = batchnorm == "support" and any(isinstance(part, _BatchNorm) for part in model.modules())
    model = copy.deepcopy(model).train(batchnorm != "running")
    if together:
        model[1] = FirstRows(model[1], len(task.support.weight))
    names, leaves = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad))
    values = leaves

    def call(values, x):
        given = ((), x) if isinstance(x, dict) else ((x,), {})
        return torch.func.functional_call(model, dict(zip(names, values)), *given)  # its buffers go from call to call

    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(STEPS):
            loss = F.cross_entropy(call(values, task.support.inputs), task.support.targets)
            grads = torch.autograd.grad(loss, values, create_graph=True, allow_unused=True)
            values = [v if g is None else v - RATE * g for v, g in zip(values, grads)]
        if together:
            logits = call(values, torch.cat([task.support.inputs, task.query.inputs]))[len(task.support.weight) :]
        else:
            logits = call(values, task.query.inputs)
        loss = F.cross_entropy(logits, task.query.targets)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(names, grads))


@rows
def test_a_second_order_step_equals_the_written_out_loop(row):
    model, (task, _), batchnorm = make(row)
    before = copy.deepcopy(model.state_dict())
    learner = kshot.maml(model, inner_lr=RATE, steps=STEPS, batchnorm=batchnorm)
    torch.manual_seed(5)
    loss = learner(task)
    loss.backward()
    torch.manual_seed(5)
    expected, grads = reference(model, task, batchnorm)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if isinstance(model, Mixed) else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(loss.detach(), expected, **tolerance)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found, grads[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    copy.deepcopy(learner)


@pytest.mark.parametrize("name", [name for name in ZOO if name != "BERT"])
def test_vmap_equals_the_loop_for_every_module(name):
    model, tasks, batchnorm = make(ZOO[name])
    random = any(isinstance(part, nn.Dropout) or getattr(part, "upper", 0) == 0.9 for part in model.modules())
    model.train(not random)
    learner = kshot.maml(model, inner_lr=RATE, steps=STEPS, batchnorm=batchnorm)
    found, before = [], copy.deepcopy(model.state_dict())
    for mode in ("loop", "vmap"):
        learner.zero_grad()
        model.load_state_dict(before)  # buffers are as after a step
        meta_gradient(learner, stack(tasks), mode)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if isinstance(model, Mixed) else {"rtol": 1e-9, "atol": 1e-11}
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], **tolerance)


def test_bert_takes_the_loop_for_its_padding_mask_and_vmap_for_one_by_pairs():
    """`transformers` asks whether a mask (n, L) holds padding at all, but takes one (n, 1, L, L) as it is."""
    model, tasks, _ = make(ZOO["BERT"])
    learner = kshot.maml(model.eval(), inner_lr=RATE, steps=STEPS)
    with pytest.raises(RuntimeError, match=r"the layer 'model.bert' \(BertModel\) .* use mode='loop'"):
        meta_gradient(learner, stack(tasks), "vmap")

    def gradient(mode, tasks):
        learner.zero_grad()
        taken = MetaGradient(learner, mode)
        for _ in range(3 if mode == "auto" else 1):  # each way in turn
            learner.zero_grad()
            taken(stack(tasks))
        return taken.choice, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def by_pairs(batch):
        mask = batch.inputs["attention_mask"].bool()[:, None, None].expand(-1, 1, 6, 6)
        return batch._replace(inputs=batch.inputs | {"attention_mask": mask})

    _, expected = gradient("loop", tasks)
    choice, found = gradient("auto", tasks)
    assert choice.startswith("loop, since vmap does not run: the layer 'model.bert' (BertModel)")
    torch.testing.assert_close(found, expected)
    _, found = gradient("vmap", [Task(*map(by_pairs, task)) for task in tasks])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_only_the_adapters_of_a_language_model_adapt():
    torch.manual_seed(0)
    model, (_, (task, _), _) = lora(), make(ZOO["causal language model with LoRA"])
    model = model.double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner = kshot.maml(model, inner_lr=RATE, steps=STEPS, adaptable="*lora*")
    state = learner.adapt(task.support)
    assert state["params"]
    assert all("lora" in name for name in state["params"])
    outer = torch.optim.Adam((p for p in learner.parameters() if p.requires_grad), 0.1)
    for _ in range(2):  # of LoRA's two factors the second begins at zero, so the first learns from the second step on
        outer.zero_grad()
        learner(task).backward()
        outer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == ("lora" not in name), name


@pytest.mark.parametrize("name", ["TransformerEncoder", "MultiheadAttention", "LSTM"])
def test_adapting_in_evaluation_mode_without_gradients_is_the_same(name):
    model, (task, _), _ = make(ZOO[name])
    learner = kshot.maml(model.eval(), inner_lr=RATE, steps=STEPS)
    whole = learner.predict(learner.adapt(task.support), task.query.inputs)
    with torch.no_grad():
        alone = learner.predict(learner.adapt(task.support), task.query.inputs)
        many = torch.vmap(lambda t: learner.predict(learner.adapt(t.support), t.query.inputs))(stack([task, task]))
    torch.testing.assert_close(alone, whole.detach())
    torch.testing.assert_close(many[1], whole.detach())


def test_the_kernels_are_as_they_were_afterwards():
    flags = torch.backends.cuda.flash_sdp_enabled, torch.backends.mha.get_fastpath_enabled
    before = [flag() for flag in flags]
    model, (task, _), _ = make(ZOO["TransformerEncoder"])
    kshot.maml(model, inner_lr=RATE)(task)
    with pytest.raises(AssertionError):
        kshot.maml(model, inner_lr=RATE).adapt(Batch(torch.zeros(6, 3, 9).double(), *task.support[1:]))
    assert [flag() for flag in flags] == before == [True, True]


def test_unroll_has_a_second_derivative_through_fused_attention():
    model, (task, _), _ = make(ZOO["fused attention"])
    loss = lambda params: F.cross_entropy(  # noqa: E731
        torch.func.functional_call(model, params, (task.support.inputs,)), task.support.targets
    )
    adapted = unroll(loss, dict(model.named_parameters()), SGD(RATE), 2)
    sum(value.sum() for value in adapted.values()).backward()
    assert model.qkv.weight.grad.abs().sum() > 0


def test_what_cannot_be_batched_names_the_layer_and_the_way_out():
    model, tasks = nn.Sequential(Gathering(), nn.Linear(3, 2)).double(), make(ZOO["mlp"])[1]
    learner = kshot.maml(model, inner_lr=RATE)
    with pytest.raises(RuntimeError, match=r"layer '0' \(Gathering\) changes in place .* use mode='loop'"):
        meta_gradient(learner, stack(tasks), "vmap")
    meta_gradient(learner, stack(tasks), "loop")


class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return torch.cdist(x, self.centres, p=3.0)


def test_what_has_no_second_derivative_names_the_layer_and_the_way_out():
    model, tasks = nn.Sequential(Distances(), nn.Tanh(), nn.Linear(4, 2)).double(), make(ZOO["mlp"])[1]
    learner = kshot.maml(model, inner_lr=RATE)
    with pytest.raises(RuntimeError, match=r"layer '0' \(Distances\) uses cdist, .* order=1"):
        meta_gradient(learner, stack(tasks), "loop")
    for way_out in ({"order": 1}, {"adaptable": "2.*"}):
        meta_gradient(kshot.maml(model, inner_lr=RATE, **way_out), stack(tasks), "loop")


SMALL = {
    "maml": (lambda: kshot.maml(nn.Linear(1, 2, bias=False), inner_lr=RATE), 1000),
    "maml of an LSTM": (lambda: kshot.maml(Last(nn.LSTM(1, 2, batch_first=True, bias=False)), inner_lr=RATE), 1000),
    "learned rule": (
        lambda: kshot.learners.learned_optimizer(nn.Linear(1, 2, bias=False), inner_lr=RATE, steps=1),
        1000,
    ),
    "maml++": (lambda: kshot.learners.maml_pp(nn.Linear(1, 2, bias=False), inner_lr=RATE, steps=1), 100),
    "imaml": (lambda: kshot.learners.imaml(nn.Linear(1, 2, bias=False), inner_lr=RATE, steps=1, iterations=1), 100),
}


class Last(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x[:, None])[0][:, -1]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_thousand_steps_leave_nothing_behind(name):
    make, count = SMALL[name]
    learner, batch = make(), Batch.of(torch.randn(2, 1), torch.tensor([0, 1]), ways=2)
    tasks, gradients = stack([Task(batch, batch)]), [MetaGradient(learner, mode) for mode in ("loop", "vmap")]

    def run(steps):
        """Steps by loop and by vmap in turn; what there is afterwards: tensors, objects, MiB."""
        for number in range(steps):
            learner.zero_grad()
            gradients[number % 2](tasks)
        gc.collect()
        objects = gc.get_objects()
        return sum(issubclass(type(thing), torch.Tensor) for thing in objects), len(objects), resident()

    tensors, objects, memory = run(60)
    after = run(count)
    assert after[0] <= tensors
    assert after[1] <= objects + 50
    assert after[2] <= memory + 1


def resident():
    """Memory that the process holds, in MiB; 0 where the system does not tell (it is not Linux)."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if pages.exists() else 0.0


def test_rrelu_draws_slopes_for_each_task_of_a_batch():
    values = -torch.ones(2, 2000, dtype=torch.float64)
    torch.manual_seed(0)
    slopes = -torch.vmap(lambda x: rrelu(x, 0.2, 0.6, True), randomness="different")(values)
    assert 0.2 <= slopes.min() < 0.21
    assert 0.59 < slopes.max() <= 0.6
    torch.testing.assert_close(slopes.mean(1), torch.full((2,), 0.4, dtype=torch.float64), rtol=0, atol=0.01)
    assert not torch.equal(slopes[0], slopes[1])
    assert torch.equal(torch.vmap(lambda x: rrelu(x, 0.2, 0.6, True), randomness="different")(-values), -values)
