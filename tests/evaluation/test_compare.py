"""Paired differences, tables of tasks, and leaderboards."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import kshot
from kshot.evaluation.compare import compare, differences, paired_difference
from kshot.evaluation.per_task import Scores, read_tasks, write_tasks
from kshot.evaluation.report.leaderboard import boards_page, note
from kshot.evaluation.report.verdict import verdict
from kshot.files import read_json, write_json

HASHES = [f"{number:016x}" for number in range(400)]


def scores(values, metric: str = "accuracy", first: int = 0) -> Scores:
    return Scores(HASHES[first : first + len(values)], {metric: list(map(float, values)), "loss": [0.0] * len(values)})


HARD = np.random.default_rng(0).normal(0.8, 0.1, 400)  # how hard each task is
NOISE = np.random.default_rng(1).normal(0, 0.01, (4, 400))


def test_a_small_gain_is_told_on_the_same_tasks_where_intervals_overlap():
    ours, theirs = scores(HARD + 0.005 + NOISE[0]), scores(HARD + NOISE[1])
    found = paired_difference(ours, theirs, "accuracy")
    assert found.mean - found.ci95 > 0
    assert found.p == pytest.approx(stats.ttest_rel(HARD + 0.005 + NOISE[0], HARD + NOISE[1]).pvalue, rel=0.5)
    test, baselines = (
        {"accuracy": {"mean": float(np.mean(each.per_task["accuracy"])), "ci95": 0.0098, "num_tasks": 400}}
        for each in (ours, theirs)
    )
    named = {"plain": baselines}
    assert "as good here" in verdict(test, named, "accuracy")
    paired = differences(ours, {"plain": theirs}, "accuracy")
    assert "beats the best baseline without meta-learning by 0.00" in verdict(test, named, "accuracy", paired=paired)
    same = differences(ours, {"plain": ours}, "accuracy")
    assert "gave the same figure on each of the same 400 tasks" in verdict(test, named, "accuracy", paired=same)
    worse = {"plain": paired["plain"] | {"mean": -paired["plain"]["mean"]}}
    assert "is worse than" in verdict(test, named, "accuracy", paired=worse)


def test_one_may_have_more_tasks_if_the_others_are_its_first():
    found = paired_difference(scores(HARD[:300]), scores(HARD[:100] - 0.25), "accuracy")
    assert (found.num_tasks, found.mean) == (100, pytest.approx(0.25))


def test_other_episodes_are_refused():
    with pytest.raises(ValueError, match="not evaluated on the same episodes: task 0 is 0000000000000000…"):
        paired_difference(scores(HARD[:5]), scores(HARD[:5], first=1), "accuracy")
    sources = [kshot.sources.sinusoids(seed=seed) for seed in (0, 1)]
    one, other = (
        kshot.evaluate(kshot.learners.SupportMean(source.objective), source, num_tasks=3) for source in sources
    )
    with pytest.raises(ValueError, match="with the same seed of tasks"):
        paired_difference(one, other, "mse")
    with pytest.raises(ValueError, match="no metric 'accuracy' to compare, only loss, mse"):
        paired_difference(one, one, "accuracy")


def test_differences_to_several_are_corrected_for_their_number():
    others = {name: scores(HARD + NOISE[number]) for number, name in enumerate("abc")}
    found = differences(scores(HARD + 0.0012 + NOISE[3]), others, "accuracy")
    smallest = min(each["p"] for each in found.values())
    assert min(each["p_holm"] for each in found.values()) == pytest.approx(3 * smallest)


def test_a_table_of_tasks_comes_back_exactly(tmp_path):
    ours = scores(HARD)
    others = {"nearest of all": scores(HARD[:7] / 3), "scratch": scores([math.nan, math.inf])}
    write_tasks(tmp_path / "tasks.csv", ours, others, "accuracy")
    lines = (tmp_path / "tasks.csv").read_text().splitlines()
    assert lines[0] == "task,episode,accuracy,loss,accuracy of nearest of all,accuracy of scratch"
    assert len(lines) == 401
    read, baselines = read_tasks(tmp_path / "tasks.csv")
    assert read == ours
    assert baselines["nearest of all"] == Scores(HASHES[:7], {"accuracy": list(HARD[:7] / 3)})
    assert str(baselines["scratch"].per_task["accuracy"]) == "[nan, inf]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no .*the run is not finished"),
        ("", "not a table of tasks"),
        ("task,accuracy\n0,1\n", "not a table of tasks"),
        ("task,episode,accuracy\n0,ab,much\n", "not a table of tasks"),
        ("task,episode,accuracy\n0,ab\n", "not a table of tasks"),
    ],
)
def test_a_table_that_is_none_gets_a_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / "tasks.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_tasks(tmp_path / "tasks.csv")


# leaderboards ---------------------------------------------------------------------------------------------------------


def folder(at: Path, values, *, name: str = "", episodes: str = "ab" * 32, metric: str = "accuracy", **report) -> Path:
    """A run folder with what a leaderboard reads."""
    at.mkdir(parents=True)
    ci95 = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    protocol = {"source": "glyphs", "ways": 5, "shots": 1, "learner": {"kind": "maml"}, "inductive": True}
    about = {
        "name": name or at.name,
        "metric": metric,
        "higher_is_better": metric == "accuracy",
        "test": {metric: {"mean": float(np.mean(values)), "ci95": ci95, "num_tasks": len(values)}},
        "protocol": protocol | {"episodes_sha256": episodes},
        "cost": {"adapt_ms": {"median": 2.0, "p95": 3.0}, "num_parameters": 1864, "adapt_flops": 324096},
    }
    write_json(at / "report.json", about | report)
    write_tasks(at / "tasks.csv", scores(values, metric), {}, metric)
    return at


def test_what_is_not_to_be_trusted_is_never_the_best(tmp_path):
    runs = [
        folder(tmp_path / "leaks", HARD + 0.1, trusted=False),
        folder(tmp_path / "honest", HARD - 0.1 + NOISE[0], trusted=True),
    ]
    (board,) = compare(runs)
    assert [line.entry.name for line in board.lines] == ["honest", "leaks"]
    assert "not to be trusted" in boards_page([board])


def test_a_board_ranks_and_says_which_differences_are_shown(tmp_path):
    runs = [
        folder(tmp_path / "far", HARD - 0.2 + NOISE[0]),
        folder(tmp_path / "best", HARD + NOISE[1]),
        folder(tmp_path / "near", HARD - 0.0005 + NOISE[2]),
    ]
    (board,) = compare(runs)
    assert [line.entry.name for line in board.lines] == ["best", "near", "far"]
    best, near, far = board.lines
    assert (best.behind, best.tied) == (None, False)
    assert near.tied
    assert not far.tied
    assert far.behind.mean == pytest.approx(-0.2, abs=0.002)
    raw = [
        paired_difference(a.entry.scores, b.entry.scores, "accuracy").p
        for a, b in [(best, near), (best, far), (near, far)]
    ]
    assert near.p == pytest.approx(raw[0])  # the largest of three
    assert far.p == pytest.approx(min(1, 3 * raw[1]))
    assert board.source == "glyphs, 5 ways, 1 shot"


def test_errors_are_ranked_from_below(tmp_path):
    runs = [folder(tmp_path / name, HARD + gap, metric="mse") for name, gap in (("a", 0.1), ("b", 0.0))]
    (board,) = compare(runs)
    assert [line.entry.name for line in board.lines] == ["b", "a"]


def test_other_episodes_or_metrics_stand_on_boards_of_their_own(tmp_path):
    runs = [
        folder(tmp_path / "a", HARD),
        folder(tmp_path / "b", HARD + 0.3, episodes="cd" * 32),
        folder(tmp_path / "c", HARD - 0.1),
        folder(tmp_path / "d", HARD, metric="mse"),
    ]
    names = [[line.entry.name for line in board.lines] for board in compare(runs)]
    assert names == [["a", "c"], ["b"], ["d"]]


def test_seeds_in_one_folder_are_one_entry(tmp_path):
    for seed, gain in ((0, 0.0), (2, 0.01), (10, 0.02)):
        folder(tmp_path / "several" / f"seed-{seed}", HARD + gain, name="several")
    folder(tmp_path / "one", HARD + 0.001)
    (board,) = compare([tmp_path / "several", tmp_path / "one"])
    several, one = board.lines
    assert (several.entry.figure.num_seeds, one.entry.figure.num_seeds) == (3, 1)
    assert several.entry.figure.mean == pytest.approx(HARD.mean() + 0.01)
    assert several.entry.figure.ci95 == pytest.approx(0.01 * stats.t.ppf(0.975, 2) / 3**0.5)
    assert one.behind.num_seeds == (1, 3)
    assert one.tied, "all tasks agree, but the seeds differ by more"


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [folder(tmp_path / place, HARD, name="same") for place in "ab"]
    (board,) = compare(runs)
    assert {line.entry.name for line in board.lines} == {str(run) for run in runs}


def test_a_board_of_both_protocols_says_that_they_do_not_compare(tmp_path):
    both = [folder(tmp_path / "a", HARD), folder(tmp_path / "b", HARD + NOISE[0])]
    (board,) = compare(both)
    assert "Transductive" not in note(board)
    report = read_json(both[1] / "report.json")
    report["protocol"]["inductive"] = False
    write_json(both[1] / "report.json", report)
    (board,) = compare(both)
    assert "Transductive figures use the other queries" in note(board)


def test_what_cannot_be_compared_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([])
    with pytest.raises(ValueError, match="holds no finished run"):
        compare([tmp_path])
    folder(tmp_path / "x" / "seed-0", HARD)
    folder(tmp_path / "x" / "seed-1", HARD, episodes="cd" * 32)
    with pytest.raises(ValueError, match="seed-1 was evaluated on different episodes"):
        compare([tmp_path / "x"])
    with pytest.raises(ValueError, match="has no test figure: The loss became infinite"):
        compare([folder(tmp_path / "nan", HARD, test=None, sentence="The loss became infinite")])
    report = tmp_path / "x" / "seed-0" / "report.json"
    write_json(report, {})
    with pytest.raises(ValueError, match="is not a report of a run"):
        compare([tmp_path / "x"])
    report.write_text("[]")
    with pytest.raises(ValueError, match=r"seed-0/report\.json is damaged"):
        compare([tmp_path / "x"])
