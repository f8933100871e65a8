"""Base models of PyTorch Geometric meta-learn over graphs: as padded tensors, in dense layers and in sparse ones."""

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot.data.dataset import ArrayDataset
from kshot.tasks import ClassTasks
from kshot.training.step import MetaGradient
from kshot.types import Batch, tree_map

pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")

CLASSES, EXAMPLES, MOST = 15, 8, 9


def a_graph(kind, number):
    """A ring of random size with chords: the class says how many. A second feature is noise, the same in all nodes."""
    from torch_geometric.data import Data

    random = np.random.default_rng([kind, number])
    size, reach, count = int(random.integers(7, MOST + 1)), 2 + kind % 2, kind // 2
    ring = [(node, (node + 1) % size) for node in range(size)]
    chords = [(int(node), int(node + reach) % size) for node in random.choice(size, count, replace=False)]
    edges = torch.tensor(ring + chords).T
    noise = float(random.normal(0, 2))
    return Data(x=torch.tensor([[1.0, noise]]).repeat(size, 1), edge_index=torch.cat([edges, edges.flip(0)], dim=1))


def padded(graphs):
    """A batch of graphs as tensors with a row for each graph: nodes, adjacency, edges, and which nodes there are."""
    from torch_geometric.data import Batch as Graphs
    from torch_geometric.utils import to_dense_adj, to_dense_batch

    batch = Graphs.from_data_list(graphs)
    nodes, is_node = to_dense_batch(batch.x, batch.batch, max_num_nodes=MOST)
    adjacency = to_dense_adj(batch.edge_index, batch.batch, max_num_nodes=MOST)
    most = max(graph.num_edges for graph in graphs)
    edges = torch.full((len(graphs), 2, most), MOST)  # MOST is a node without features, for padding
    for row, graph in enumerate(graphs):
        edges[row, :, : graph.num_edges] = graph.edge_index
    return {"nodes": nodes, "adjacency": adjacency, "edges": edges, "is_node": is_node}


@pytest.fixture(scope="module")
def source():
    inputs = padded([a_graph(kind, number) for kind in range(CLASSES) for number in range(EXAMPLES)])
    rows = {f"kind {kind}": range(EXAMPLES * kind, EXAMPLES * (kind + 1)) for kind in range(CLASSES)}
    names = sorted(rows, key=lambda name: (int(name.split()[1]) * 7) % CLASSES)
    cut = {"train": names[:9], "val": names[9:12], "test": names[12:]}
    classes = {split: {name: rows[name] for name in chosen} for split, chosen in cut.items()}
    return ClassTasks(ArrayDataset(tree_map(torch.Tensor.numpy, inputs)), classes, ways=3, shots=2, queries=4)


def mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh(), nn.Linear(outputs, outputs))


class Dense(nn.Module):
    """Graphs (n, V, ...) to features (n, 16), by dense layers; inputs that are a dict are passed by name."""

    def __init__(self):
        super().__init__()
        from torch_geometric.nn import DenseGINConv

        self.first, self.second = DenseGINConv(mlp(2, 16)), DenseGINConv(mlp(16, 16))

    def forward(self, nodes, adjacency, edges, is_node):
        hidden = self.first(nodes, adjacency, is_node).tanh()
        hidden = self.second(hidden, adjacency, is_node)
        return (hidden * is_node[..., None]).sum(1) / is_node.sum(1, keepdim=True)


class Sparse(nn.Module):
    """Graphs (n, V, ...) to features (n, 16), by sparse layers on one graph that joins them."""

    def __init__(self):
        super().__init__()
        from torch_geometric.nn import GINConv

        self.first, self.second = GINConv(mlp(2, 16)), GINConv(mlp(16, 16))

    def forward(self, nodes, adjacency, edges, is_node):
        size = MOST + 1  # with the node of the padding
        offsets = size * torch.arange(len(nodes))[:, None, None]
        edges = (edges + offsets).transpose(0, 1).flatten(1)  # (2, n E)
        joined = nn.functional.pad(nodes, (0, 0, 0, 1)).flatten(0, 1)  # (n (V + 1), F)
        exists = nn.functional.pad(is_node, (0, 1)).flatten()[:, None]
        hidden = self.first(joined, edges).tanh() * exists
        hidden = self.second(hidden, edges) * exists
        return hidden.unflatten(0, (len(nodes), size)).sum(1) / is_node.sum(1, keepdim=True)


class Classifier(nn.Module):
    """The features of a model, and a layer for three classes."""

    def __init__(self, model):
        super().__init__()
        self.model, self.last = model, nn.Linear(16, 3)

    def forward(self, **graphs):
        return self.last(self.model(**graphs))


def test_protonet_learns_an_embedding_of_graphs(source):
    torch.manual_seed(0)
    learner = kshot.protonet(Dense(), objective=source.objective)
    before = kshot.evaluate(learner, source, num_tasks=40, audit=False).metrics["accuracy"]
    kshot.fit(learner, source, steps=60, tasks_per_step=4, outer_lr=2e-2, mode="vmap")
    after = kshot.evaluate(learner, source, num_tasks=40, audit=False).metrics["accuracy"]
    assert after.low > before.high


def test_sparse_layers_on_a_joined_graph_compute_what_dense_ones_do(source):
    dense, sparse = Dense(), Sparse()
    sparse.load_state_dict(dense.state_dict())
    tasks = source.stack("train", range(3))
    gradients = []
    for model, mode in ((dense, "loop"), (dense, "vmap"), (sparse, "loop")):
        learner = kshot.protonet(model, objective=source.objective)
        learner.zero_grad()
        MetaGradient(learner, mode)(tasks)
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert torch.allclose(gradient, other[name], atol=1e-5), name


@pytest.mark.parametrize("model", [Dense, Sparse])
def test_inner_steps_adapt_a_model_of_graphs(source, model):
    task = source.task("train", 0)
    network = Classifier(model())
    learner = kshot.maml(network, inner_lr=0.1, steps=3, objective=source.objective)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    learner(task).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_a_graph_of_pytorch_geometric_itself_is_an_error_with_the_way_out():
    with pytest.raises(ValueError, match="is a graph, and examples are rows of tensors: give each graph a row"):
        Batch.of(a_graph(0, 0), torch.zeros(1, 1))
