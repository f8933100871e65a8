"""The site of the documents has a page for everything that there is; `make docs` builds it, which checks each link."""

import doctest
import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("hook", ROOT / "docs" / "site" / "hook.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def listed() -> set[str]:
    """The pages of the navigation."""

    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in pages(each)]

    return set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def test_the_navigation_has_each_document_and_each_package_once(hook, listed):
    documents = {path.name for path in (ROOT / "docs").glob("*.md")} | set(hook.PAGES.values())
    assert listed == documents | set(hook.references())


def test_the_reference_documents_each_public_name_once(hook):
    pages = "\n".join(hook.references().values())
    names = {path for package in hook.packages() for path in hook.public_names(package).values()}
    assert "kshot.learners.heads.protonet.protonet" in names
    assert all(pages.count(f"::: {path}\n") == 1 for path in names)


def test_links_between_files_become_links_between_pages(hook):
    assert doctest.testmod(hook).failed == 0
    assert hook.with_links("```sh\n[a](b.md)\n```\n[a](b.md)", "README.md") == "```sh\n[a](b.md)\n```\n[a](b.md)"
    assert hook.with_links("![](docs/images/a.png)", "README.md") == "![](images/a.png)"
    assert hook.with_links("[x](../tests/a/b.py), [y](https://e.org/a.md)", "docs/log.md") == (
        "[x](tests/a/b.md), [y](https://e.org/a.md)"
    )
    assert hook.linked_code({"docs/log.md": "[x](../tests/a/b.py) [y](log.md)"}) == {"tests/a/b.py"}
