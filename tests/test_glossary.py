"""No replaced name and no phrase of the project's former private jargon comes back.

`CHANGELOG.md` lists the old names, and this file has them as patterns; both are exempt.
"""

import re
from functools import cache
from pathlib import Path

import pytest

import kshot.learners
import kshot.sources

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".pyi", ".yaml", ".md", ".j2", ".toml"}
EXEMPT = {"CHANGELOG.md", "tests/test_glossary.py"}

ALGORITHMS = "|".join(sorted(set(kshot.learners.__all__) - {"maml", "protonet"}))
SOURCES = "|".join(sorted(set(kshot.sources.__all__) - {"episodes", "mixture"}))

OLD = {
    # Python names
    rf"\bkshot\.({ALGORITHMS})\b": "kshot.learners.…",
    rf"\bkshot\.tasks\.({SOURCES})\b": "kshot.sources.…",
    r"\bkshot\.(compare|cost|over_seeds|over_shots|paired_difference)\b": "kshot.evaluation.…",
    r"\bfit_centre\b": "fit_feature_statistics",
    r"\bload_run\b": "kshot.load",
    r"\b(evaluate|over_shots|freeze)\((?:[^()]|\([^()]*\))*?(?<!\w)tasks=": "num_tasks=",
    r"\bfold_in\b|\bFoldIn": "alpaca",
    r"\bhold=|\.hold\b|(?m:^\s*hold:)": "item_penalty",
    r"\bown_classes\b": "task_specific_classes",
    r"\.certain\b|\bcertain[=:]": "as_prediction",
    r"\.along\b|\balong=|`along`|\balong:\s*(true|false|bool)": "causal_queries",
    r"\.remember\(|\bdef (remember|join)\(|\bhead\.recall\(": "statistics, merge, fit_statistics",
    r"\bclass Measured\b|\bMeasured[(\]]|\bimport\b.*\bMeasured\b": "FeatureStatistics",
    r"\b(Prototype|Shared)Start\b|\bhead: Start\b|\bclass Start\b": "HeadInit, PrototypeInit, SharedInit",
    r"\b_turns\b": "inner batches",
    r"\bdef advance\(self, (done|fraction|part|progress|share)\b": "set_progress",
    r"\.way\b|\bfor way in\b|\bway = |\bclass Way\b": "engine, method or trajectory; N-way is the only way",
    r"\b(source|tasks|given)\.encoding\b|\bCorpusEncoding\b": "preprocessor",
    r"\b(Array|Image|Span|Window|Rating|Text|Token)Examples\b": "…Dataset",
    r"\bcarry_out\b|\bclass Tested\b|\bimport\b.*\bTested\b": "evaluate_with_baselines, TestResult",
    r"\bstate_numbers\b": "state_size",
    # Keys of run files, and arguments of the same names
    r"(?<![\w.])(val_tasks|test_tasks|shots_tasks)\b": "num_val_tasks, num_test_tasks, num_shots_tasks",
    r"\bask:\s*(mean|spread|levels|number|classification|regression)\b|\bask=[\"'{]|`ask`": "target_type",
    r"\btarget_type[\"']?[:=]\s*[\"']?(mean|spread|levels|number)\b": "regression, distribution or ordinal",
    r"\bsmall:\s*(error|drop|shrink)\b|\bsmall=[\"'](error|drop|shrink)|[\"']small[\"']:": "on_too_few",
    r"\boutside:\s*(error|allow|\w*oos)\b|\boutside=[\"'\w]|[\"']outside[\"']:": "follow_links, or out_of_scope_label",
    r"\bsince:\s*(true|false|bool)\b|\bsince=(True|False)|[\"'`]since[\"'`]": "signup_time",
    r"\bstanding:\s*(true|false|bool)\b|\bstanding=(True|False)|[\"'`]standing[\"'`]": "item_mean_feature",
    r"\bitem_standing\b": "item_mean",
    r"\btrain_busy\b": "user_sampling_power",
    r"(?m:^\s*context:\s*\d)|\b(cavia|cnaps|series|dynamic_evaluation|language_model)\([^()]*\bcontext=": (
        "context_length (steps, symbols), context_windows or task_dim"
    ),
    # Modules
    r"\bkshot[./]tasks[./](augmenting|checking|columns|content|decoded|decoding|delimited|drawing|encoders|encoding|"
    r"examples|features|fetching|fewshot|groups|known_sets|labelled|leaking|library|listing|markup|pickled|"
    r"pools|prose|published|rated_items|rated_rows|reading|synthetic|tables|tabular|tokens|unpacking|vocabulary|"
    r"watching)\b|\bkshot\.tasks\.episodes import": "kshot.data, kshot.tasks, kshot.sources or kshot.checking",
    r"\blearners[./](collaborative|context|fold_in|film|generating|implicit|learned_rules|metric|outer|reading|tabular|"
    r"task_heads)\b": "the subpackages of kshot.learners",
    r"\bevaluation[./](examples|figures|look)\b|\bapp[./]testing\b": "evaluation.report, app.final_evaluation",
    r"\b(collaborative|delimited|fetching|fewshot|generating|known_sets|leaking|rated_items|rated_rows|task_heads|"
    r"unpacking|watching)\.py\b": "the present file",
}
"""Pattern of an old name -> the name in use."""

EXCEPTIONS = {r"(?<![\w.])(val_tasks|test_tasks|shots_tasks)\b": {"benchmarks/same_as.py"}}  # it reads older recipes

JARGON = (
    r"\bof one's own\b",
    r"\btold\b|\btells? apart\b",
    r"\bnames the (sequence|tasks)\b",
    r"\bwhat (is|was) asked\b",
    r"\b(is|are) asked (of|for|as|with)\b",
    r"\btak(e|es|ing) turns\b",
    r"\b(came|comes?) of (it|them)\b",
    r"\bless (it|theirs)\b",
    r"\bnumbers in (a|the) (task's )?state\b",
    r"\ba person reads\b",
    r"\bas (it comes|they come)\b",
    r"\bso and so\b",
    r"\b(a|one) (row|line|file|folder|class|image|seed|user|item|column|task|query) an? "
    r"(class|seed|user|item|task|rating|row|file|learner|recipe|side|series)\b",
    r"\bnot to be had\b",
    r"\bgo(es)? on with\b",
    r"\bthe very (tasks?|same|ones?)\b",
    r"\b(drawn|made|written|computed) anew\b",
    r"\bwhoever knows\b|\bsomebody\b",
    r"\bhow sure\b|\bwhat came\b",
    r"\bgo(es)? by (it|the|them)\b",
    r"\b(learns?|reads?|reading) along\b",
    r"\bwithout a word\b",
    r"\bforetells?\b",
    r"\bstands? (beside|there|elsewhere|in for)\b",
)
"""Phrases that readers took for errors of language, as patterns on text with single spaces."""


@cache
def texts() -> dict[str, str]:
    """Relative path to content of each file that people read or write."""
    top = [path for path in ROOT.iterdir() if path.is_file()]
    below = [path for name in ("kshot", "tests", "benchmarks", "docs", "examples") for path in (ROOT / name).rglob("*")]
    found = sorted(path for path in (*top, *below) if path.suffix in SUFFIXES and path.is_file())
    return {name: path.read_text() for path in found if (name := path.relative_to(ROOT).as_posix()) not in EXEMPT}


@cache
def prose() -> dict[str, str]:
    """The texts, without the tests, as one line each: breaks, their indentation and comment signs become a space."""
    pages = {name: text for name, text in texts().items() if not name.startswith("tests/")}
    return {name: re.sub(r"\s*\n[\s#]*", " ", text) for name, text in pages.items()}


@pytest.mark.parametrize("pattern", OLD, ids=OLD.values())
def test_no_old_name_comes_back(pattern):
    places = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for name, text in texts().items()
        if name not in EXCEPTIONS.get(pattern, ())
        for match in re.finditer(pattern, text)
    ]
    assert not places, f"it is called {OLD[pattern]} now:\n" + "\n".join(places)


@pytest.mark.parametrize("pattern", JARGON)
def test_no_jargon_comes_back(pattern):
    places = [
        f"{name}: …{text[max(match.start() - 40, 0) : match.end() + 40]}…"
        for name, text in prose().items()
        for match in re.finditer(pattern, text)
    ]
    assert not places, "say it in plain technical English:\n" + "\n".join(places)
