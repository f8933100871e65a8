"""The baselines that suit a source, whatever its objective."""

import pytest

from kshot.evaluation import evaluate
from kshot.evaluation.baselines import baselines
from kshot.sources import ratings


@pytest.mark.parametrize("target_type", ["regression", "ordinal"])
def test_ratings_have_the_baselines_of_ratings_alone(target_type, tmp_path):
    rows = [f"user {user},film {(7 * user + 3 * i) % 50},{1 + (user + i) % 5}" for user in range(40) for i in range(14)]
    (tmp_path / "ratings.csv").write_text("\n".join(["user,item,rating", *rows]))
    source = ratings(tmp_path / "ratings.csv", target_type=target_type, shots=5, queries=5)
    found = baselines(source, num_val_tasks=2)
    assert {"global_mean", "user_mean", "item_knn"} <= set(found)
    assert not {"centroid", "support_mean"} & set(found), "which take inputs of one tensor"
    assert evaluate(found["user_mean"], source, num_tasks=3, audit=False).metrics["mae"].mean > 0
