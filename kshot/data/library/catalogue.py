"""The data sets that kshot knows by name: what they are, whose they are, and where their files come from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class File(NamedTuple):
    """A file of a data set, as its publisher gives it.

    Attributes:
        name: in the folder of the set, and on a mirror.
        address: of the publisher.
        hashes: `sha256:…` or `md5:…` of what is known to be right. None: the first copy is trusted, and its hash is
            recorded for the next.
        unpacked: whether it is an archive that is kept unpacked.
    """

    name: str
    address: str
    hashes: tuple[str, ...] = ()
    unpacked: bool = False


class DataSet(NamedTuple):
    """A data set that kshot knows.

    Attributes:
        name: its folder in the library, and its factory in `kshot.tasks` where it has one.
        description: what it holds.
        licence: of the data.
        address: where it comes from; empty for what is built in.
        cut: how it's cut into train, val and test.
        parts: the files and folders at the top of its folder, of which those present are copied; none: built in.
        files: what is fetched.
        kind: the kind of source that its files are for; empty where `kshot.tasks` has a factory of the set's name.
        where: the folder it was found in; None where it is built in or was not found.
    """

    name: str
    description: str
    licence: str
    address: str
    cut: str
    parts: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    kind: str = ""
    where: Path | None = None

    @property
    def built_in(self) -> bool:
        """Whether it needs no files of its own."""
        return not self.parts

    @property
    def has_factory(self) -> bool:
        """Whether `kshot.tasks` opens it by its name; the others are files for a source of the user's."""
        return not self.kind


_GITHUB = "https://raw.githubusercontent.com"
_OMNIGLOT = f"{_GITHUB}/brendenlake/omniglot/057f034baf2ecb8530bc5710e5a23584d2a519cc"
_VINYALS = (
    f"{_GITHUB}/jakesnell/prototypical-networks/c9bb4d258267c11cb6e23f0a19242d24ca98ad8a/data/omniglot/splits/vinyals"
)
_CLINC = f"{_GITHUB}/clinc/oos-eval/828f8093932c8fe6ca7936c3d2e52903b1c523de"
_NLTK = f"{_GITHUB}/nltk/nltk_data/5db857e6f7df11eabb5e5665836db9ec8df07e28/packages/corpora"
_MOVIELENS = "https://files.grouplens.org/datasets/movielens"
_CHAR_RNN = f"{_GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"

KNOWN = (
    DataSet(
        "sinusoids",
        "sine waves to regress, drawn at run time",
        "none needed",
        "",
        "each split draws its own amplitudes and phases from one distribution",
    ),
    DataSet(
        "glyphs",
        "characters of many scripts, drawn at run time from the fonts that matplotlib ships",
        "DejaVu fonts: Bitstream Vera licence and public domain",
        "",
        "by script: whole scripts are held out",
    ),
    DataSet(
        "omniglot",
        "1,623 handwritten characters of 50 alphabets, 20 drawings of each",
        "MIT",
        "https://github.com/brendenlake/omniglot",
        "by character, the lists of Vinyals et al. 2016: splits_vinyals/{train,val,test}.txt",
        (
            "images_background.zip",
            "images_evaluation.zip",
            "images_background",
            "images_evaluation",
            "splits_vinyals",
            "official",
            "LICENSE",
        ),
        (
            # The MD5 are those that torchvision publishes for the author's zips, the SHA-256 those of the same
            # drawings, each PNG byte for byte, zipped again.
            File(
                "images_background.zip",
                f"{_OMNIGLOT}/python/images_background.zip",
                (
                    "md5:68d2efa1b9178cc56df9314c21c6e718",
                    "sha256:0bd52a6c3e9b67c37260b49aa0ef999a781ce200d5971ac765cf7a4dcab78b9f",
                ),
            ),
            File(
                "images_evaluation.zip",
                f"{_OMNIGLOT}/python/images_evaluation.zip",
                (
                    "md5:6b91aef0f799c5bb55b94e3f2daec811",
                    "sha256:9d4a06435df3232e1e797949d03addc4bd9874ee5febcfbe49434c889d6f0a3e",
                ),
            ),
            File(
                "splits_vinyals/train.txt",
                f"{_VINYALS}/train.txt",
                ("sha256:984522c194c30fb678ce53304a160a42faf5403ad4f9a67010f32dd3a35738e0",),
            ),
            File(
                "splits_vinyals/val.txt",
                f"{_VINYALS}/val.txt",
                ("sha256:11f99e54faee3e26f53d3231c1cceac5bf7b8730e9be31cb6dab256551dc0c1a",),
            ),
            File(
                "splits_vinyals/test.txt",
                f"{_VINYALS}/test.txt",
                ("sha256:845264cc5c156180828ccf17915668b17ee21424d0170df6e7d81676aa5d1204",),
            ),
            File(
                "official/all_runs.zip",
                f"{_OMNIGLOT}/python/one-shot-classification/all_runs.zip",
                ("sha256:437c1eeab0af8484112e1b4cc0f3d541ec727f7c47b9b202da738af9dfd6c325",),
            ),
            File(
                "LICENSE",
                f"{_OMNIGLOT}/LICENSE",
                ("sha256:2efb425d9850e7bce985f151dc2ee1f4485e926a3582e08fd879cd28eb0388f5",),
            ),
        ),
    ),
    DataSet(
        "clinc150",
        "22,500 questions of 150 intents in 10 domains, and 1,200 that are out of scope",
        "CC BY 3.0",
        "https://github.com/clinc/oos-eval",
        "by you: by intent, or by whole domains as domains.json names them",
        ("data_full.json", "domains.json", "LICENSE"),
        (
            File(
                "data_full.json",
                f"{_CLINC}/data/data_full.json",
                ("sha256:36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",),
            ),
            File(
                "domains.json",
                f"{_CLINC}/data/domains.json",
                ("sha256:b947b579d3b8e74b06f93b01083d8efaff2888b43a3e362533bd88a6e1211b3a",),
            ),
            File(
                "LICENSE",
                f"{_CLINC}/LICENSE",
                ("sha256:e6bc9e9c474700b708f568bac9e5a8a9bcb2b1dad53442f5ba449fcb848b8e76",),
            ),
        ),
        kind="text",
    ),
    DataSet(
        "tinyshakespeare",
        "1.1 MB of Shakespeare's plays as one text",
        "public domain",
        "https://github.com/karpathy/char-rnn",
        "by you: by speaker",
        ("input.txt",),
        (
            File(
                "input.txt",
                f"{_CHAR_RNN}/data/tinyshakespeare/input.txt",
                ("sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",),
            ),
        ),
        kind="corpus",
    ),
    DataSet(
        "nltk_corpora",
        "the Declaration of Human Rights in some 385 languages, 124 speeches of American presidents, 8 plays as XML",
        "public domain",
        "https://github.com/nltk/nltk_data",
        "by you: by language, by president",
        ("udhr2.zip", "inaugural.zip", "state_union.zip", "shakespeare.zip"),
        (
            File(
                "udhr2.zip",
                f"{_NLTK}/udhr2.zip",
                ("sha256:0796c314b09a930c989c6f9d93d226af9af13feccd88496e196c743dd266c7f3",),
            ),
            File(
                "inaugural.zip",
                f"{_NLTK}/inaugural.zip",
                ("sha256:7c5fb5793e31fbeae12bf1aa0ffda5336468f07cedb50654c6d31ca384e2046b",),
            ),
            File(
                "state_union.zip",
                f"{_NLTK}/state_union.zip",
                ("sha256:366c1dc82b2abf896f42b2ec50ba802a0141a29f75d29ca48a7a243ce5bfbe8d",),
            ),
            File(
                "shakespeare.zip",
                f"{_NLTK}/shakespeare.zip",
                ("sha256:f1251d8c254710363254ba29c9dc0888d5cb13d5ac736ebc6fb14380f447cfc3",),
            ),
        ),
        kind="corpus",
    ),
    DataSet(
        "movielens-100k",
        "100,000 ratings of 1,682 films by 943 people, with their age, sex and occupation",
        "research only, neither passed on nor used commercially without permission (see its README)",
        "https://grouplens.org/datasets/movielens/100k/",
        "by you: by user",
        ("u.data", "u.item", "u.user", "u.genre", "u.occupation", "u.info", "README"),
        (File("ml-100k.zip", f"{_MOVIELENS}/ml-100k.zip", unpacked=True),),
        kind="ratings",
    ),
    DataSet(
        "movielens-1m",
        "1,000,209 ratings of some 3,900 films by 6,040 people, with their age, sex and occupation",
        "research only, neither passed on nor used commercially without permission (see its README)",
        "https://grouplens.org/datasets/movielens/1m/",
        "by you: by user",
        ("ratings.dat", "movies.dat", "users.dat", "README"),
        (File("ml-1m.zip", f"{_MOVIELENS}/ml-1m.zip", ("md5:c4d9eecfca2ab87c1945afe126590906",), unpacked=True),),
        kind="ratings",
    ),
    DataSet(
        "movielens-25m",
        "25,000,095 ratings of 62,423 films by 162,541 people",
        "research only, neither passed on nor used commercially without permission (see its README)",
        "https://grouplens.org/datasets/movielens/25m/",
        "by you: by user",
        ("ratings.csv", "movies.csv", "README.txt"),
        (File("ml-25m.zip", f"{_MOVIELENS}/ml-25m.zip", ("md5:6b51fb2759a8657d3bfcbfc42b592ada",), unpacked=True),),
        kind="ratings",
    ),
)
