"""Two processes meta-train with frozen weights that they share, and save what each process ends with.

python -m training.in_shards FOLDER KINDS…     # in the folder of the tests, with the models of `write_models` in FOLDER
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from training.forked import by_processes

import kshot
from kshot.objectives import next_token
from kshot.training import shards, step
from kshot.training.ranks import help_first, leading, others
from kshot.types import Batch, Split, Task, tree_map

SYMBOLS, LENGTH = 11, 6
KINDS = ("gpt, second order", "gpt, first order", "bert, its adapters", "bert, all that is trained", "bert, a head")
LED = KINDS[1], KINDS[4]


def write_models(folder: Path) -> None:
    """Write a causal language model and an encoder of random weights."""
    import transformers

    torch.manual_seed(0)
    sizes = {"n_positions": LENGTH, "n_embd": 16, "n_layer": 3, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=SYMBOLS, **sizes)).save_pretrained(folder / "gpt")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(vocab_size=SYMBOLS, max_position_embeddings=12, **sizes)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]))
    (folder / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


class Texts(kshot.TaskSource):
    """Random symbols to continue; those of one task are too many for the model."""

    seed, objective = 0, next_token

    def __init__(self, too_long: int | None = None) -> None:
        self.too_long = too_long

    def task(self, split: Split, index: int) -> Task:
        length = LENGTH + (index == self.too_long)
        random = torch.Generator().manual_seed(index + len(split))
        sets = torch.randint(0, SYMBOLS, (2, 3, length + 1), generator=random)
        return Task(*(Batch(each[:, :-1], each[:, 1:], torch.ones(3, dtype=torch.float64)) for each in sets))


class Labelled(kshot.TaskSource):
    """Random tokens in two classes."""

    seed, objective = 0, kshot.objectives.classification

    def task(self, split: Split, index: int) -> Task:
        random = torch.Generator().manual_seed(index + len(split))
        ids = torch.randint(4, SYMBOLS, (2, 4, 5), generator=random)
        targets = torch.eye(2, dtype=torch.float64).repeat(2, 1)
        weight = torch.ones(4, dtype=torch.float64)
        inputs = ({"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids)
        return Task(*(Batch(each, targets, weight) for each in inputs))


def learner_of(kind: str, folder: Path) -> tuple[kshot.Learner, kshot.TaskSource]:
    torch.manual_seed(0)
    outputs = None if kind == "bert, a head" else 2
    if kind.startswith("gpt"):
        model = kshot.models.causal_lm(str(folder / "gpt"), rank=2)
    else:
        model = kshot.models.encoder(str(folder / "bert"), outputs, rank=2)
    with torch.no_grad():  # B of LoRA is 0 at first, and A then has no gradient
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.2)
    order = 1 if kind == "gpt, first order" else 2
    if kind == "bert, a head":
        learner = kshot.protonet(model)
    else:
        adaptable = "*" if kind == "bert, all that is trained" else "*lora*"
        objective = next_token if kind.startswith("gpt") else kshot.objectives.classification
        learner = kshot.maml(model, inner_lr=0.3, steps=2, order=order, adaptable=adaptable, objective=objective)
    return learner.double(), Texts() if kind.startswith("gpt") else Labelled()


def trained(kind: str, folder: Path, *, shared: bool) -> dict[str, Any]:
    """The weights and losses after training, and the figures of test tasks; shares of tasks are unequal."""
    learner, source = learner_of(kind, folder)
    if shared:
        shards.shard_frozen(learner)
    losses = kshot.fit(learner, source, steps=4, tasks_per_step=3, outer_lr=0.01)
    result = kshot.evaluate(learner, source, num_tasks=5, audit=False)
    return {"weights": learner.state_dict(), "losses": losses, "per_task": result.per_task}


def evaluated(kind: str, folder: Path, *, shared: bool) -> kshot.evaluation.Evaluation:
    learner, source = learner_of(kind, folder)
    if shared:
        shards.shard_frozen(learner)
    return kshot.evaluate(learner, source, num_tasks=3)


def led(folder: Path, kinds: list[str]) -> dict[str, Any]:
    """What process 0 computes alone, with the weights that the others give."""
    those = others()
    if dist.get_rank() > 0:
        help_first(those)
        return {}
    with leading(those):
        return {kind: evaluated(kind, folder, shared=True) for kind in LED if kind in kinds}


def blocks_alive(folder: Path) -> tuple[int, int]:
    """How many gathered blocks there are in a task of which the graph is kept, and how many were gathered."""
    learner, source = learner_of(KINDS[0], folder)
    shards.shard_frozen(learner)
    refs: list[StorageWeakRef] = []
    exchange = shards._exchange

    def noting(number: int, device: str) -> Any:
        if (whole := exchange(number, device)) is not None:
            refs.append(StorageWeakRef(whole.untyped_storage()))
        return whole

    shards._exchange = noting
    with shards.packed_weights():
        loss = learner(source.task("train", 0))
    alive = sum(not ref.expired() for ref in refs)
    loss.backward()
    shards._exchange = exchange
    return alive, len(refs)


def refused(folder: Path) -> list[str]:
    """What is said of a task that fails in a pass, and of another engine."""
    learner, _ = learner_of(KINDS[0], folder)
    shards.shard_frozen(learner)
    said = []
    for source, mode in ((Texts(too_long=4), "loop"), (Texts(), "vmap")):
        try:
            kshot.fit(learner, source, steps=3, tasks_per_step=2, mode=mode)
        except (ValueError, RuntimeError) as error:
            said.append(f"{type(error).__name__}: {error}")
    assert step.MetaGradient(learner, "auto").engine == "loop"
    return said


def main() -> None:
    folder, kinds = Path(sys.argv[1]), sys.argv[2:]
    dist.init_process_group("gloo")
    found = {"trained": {kind: trained(kind, folder, shared=True) for kind in kinds}}
    learner = shards.shard_frozen(learner_of(KINDS[0], folder)[0])
    found |= {"blocks": [block.part.numel() for block in shards._blocks.values()]}
    found |= {"numbers": shards.num_parameters(learner), "own": sum(p.numel() for p in learner.parameters())}
    found |= {"alive": blocks_alive(folder), "refused": refused(folder), "led": led(folder, kinds)}
    torch.save(tree_map(lambda leaf: leaf, found), folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    import_module("peft")  # with transformers, before there are two processes
    by_processes(main)
