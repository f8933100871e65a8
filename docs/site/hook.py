"""What MkDocs does on top of its configuration: pages from outside docs/, links, the API reference, and formulas.

The documents are written for reading in the repository: they link to each other and to code by relative paths.
The site has a page for each of these. A formula becomes MathML, which browsers show without a script.
"""

from __future__ import annotations

import ast
import posixpath
import re
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "benchmarks/RESULTS.md": "results.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
}
"""Documents outside docs/ -> their pages."""

LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)


def page_of(path: str) -> str:
    """The page of a file of the repository, both as paths from their roots.

    Example:
        >>> [page_of(path) for path in ("docs/log.md", "README.md", "examples/new_intent.py", "docs/images/demo.png")]
        ['log.md', 'index.md', 'examples/new_intent.md', 'images/demo.png']
    """
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/").removesuffix(".py") + ".md" * path.endswith(".py")


def with_links(text: str, path: str) -> str:
    """The text of a document of the repository, with links between files replaced by links between pages.

    Example:
        >>> with_links("[results](../benchmarks/RESULTS.md#speed) `[not](a.link)`", "docs/choosing.md")
        '[results](results.md#speed) `[not](a.link)`'
    """
    here = posixpath.dirname(page_of(path)) or "."

    def replaced(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        return match[1] + posixpath.relpath(page_of(target), here)

    parts = CODE.split(text)  # code at odd places
    return "".join(part if odd % 2 else LINK.sub(replaced, part) for odd, part in enumerate(parts))


def notebook(text: str) -> str:
    """A notebook in the percent format as Markdown: its cells of text as they are, those of code as blocks.

    Example:
        >>> print(notebook("# %% [markdown]\\n# # Title\\n#\\n# Text.\\n\\n# %%\\nx = 1\\n"))
        # Title
        <BLANKLINE>
        Text.
        <BLANKLINE>
        ```python
        x = 1
        ```
    """
    cells = [cell.partition("\n") for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]]
    return "\n\n".join(
        re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)
        if "[markdown]" in head
        else f"```python\n{body.strip()}\n```"
        for head, _, body in cells
    )


def linked_code(documents: dict[str, str]) -> set[str]:
    """The Python files that documents, by their paths, link to."""
    links = {
        posixpath.join(posixpath.dirname(path), link) for path in documents for _, link in LINK.findall(documents[path])
    }
    return {posixpath.normpath(link) for link in links if link.endswith(".py")}


def public_names(package: str) -> dict[str, str]:
    """Each public name of a package, other packages left out -> the full path of what it names.

    Example:
        >>> public_names("kshot.training")["fit"]
        'kshot.training.fit.fit'
    """
    folder = ROOT.joinpath(*package.split("."))
    stub = folder / "__init__.pyi"
    tree = ast.parse((stub if stub.exists() else folder / "__init__.py").read_text(encoding="utf-8"))
    imported, listed = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = f"{package}.{node.module}" if node.level else node.module
            imported |= {alias.name: f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = ast.literal_eval(node.value)
    subpackages = {path.name for path in folder.iterdir() if path.is_dir()} - set(imported)
    return {name: imported.get(name, f"{package}.{name}") for name in listed if name not in subpackages}


def packages() -> list[str]:
    """The packages with public names, and last `kshot`, which has names of others."""
    folders = [*(ROOT / "kshot").glob("*/"), *(ROOT / "kshot" / "integrations").glob("*/")]
    names = sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders if (folder / "__init__.py").exists())
    return [*(name for name in names if public_names(name)), "kshot"]


def references() -> dict[str, str]:
    """The pages of the API reference. What several packages offer is documented once, and linked elsewhere."""
    pages: dict[str, str] = {}
    documented: set[str] = set()
    for package in packages():
        tree = ast.parse(ROOT.joinpath(*package.split("."), "__init__.py").read_text(encoding="utf-8"))
        names = public_names(package)
        parts = [f"# {package}", "" if package == "kshot" else ast.get_docstring(tree) or ""]
        parts += [f"- [`{name}`][{path}]" for name, path in names.items() if path in documented or package == "kshot"]
        parts += [f"\n::: {path}\n" for path in names.values() if path not in documented]
        documented |= set(names.values())
        pages[f"reference/{package}.md"] = "\n".join(parts)
    return pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files in docs/."""
    from mkdocs.structure.files import File

    documents = {path: (ROOT / path).read_text(encoding="utf-8") for path in PAGES}
    inside = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    made = {PAGES[path]: with_links(text, path) for path, text in documents.items()}
    for path in linked_code(documents | inside):
        code = (ROOT / path).read_text(encoding="utf-8")
        made[page_of(path)] = notebook(code) if code.startswith("# %%") else f"# {path}\n\n```python\n{code}```\n"
    for path, text in (made | references()).items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the links of a document in docs/."""
    inside = page.file.generated_by is None
    return with_links(markdown, f"docs/{page.file.src_uri}") if inside else markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    r"""Replace the formulas that arithmatex marks, \(...\) and \[...\], by MathML."""
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        mathml = convert(unescape(match[3]), display="block" if match[2] == "[" else "inline")
        return f'<{match[1]} class="formula">{mathml}</{match[1]}>'

    return re.sub(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', formula, html, flags=re.DOTALL)
