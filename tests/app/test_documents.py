"""Documents are short, their links lead somewhere, and the commands that they name exist."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
LOG = sorted((ROOT / "docs/log").glob("*.md"))
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md")), *DOCS, *LOG]


def words(*paths: Path) -> int:
    """As `wc -w` counts them."""
    return sum(len(path.read_text().split()) for path in paths)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """GitHub's names of the headings of a Markdown file."""
    headings = re.findall(
        r"^#+ +(.*?) *$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path, text: str) -> list[str]:
    """Relative links in `text` whose file or heading does not exist, seen from `document`."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or (anchor and (path.suffix != ".md" or anchor not in anchors(path))):
            broken.append(target)
    return broken


def unknown_commands(text: str) -> list[str]:
    """Modules and scripts that `text` runs with Python and that are not in the repository."""
    modules = re.findall(r"python -m ((?:app|training|tests)(?:\.\w+)*)", text)
    files = [name.replace(".", "/") for name in modules] + re.findall(
        r"python ((?:tests|training|app)/[\w/]+)\.py", text
    )
    return [name for name in files if not ((ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file())]


def test_the_readme_has_at_most_900_words() -> None:
    assert words(ROOT / "README.md") <= 900


def test_the_documents_have_at_most_13200_words() -> None:
    assert words(*DOCS) <= 13_200


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_have_targets(document: Path) -> None:
    assert broken_links(document, document.read_text()) == []


def test_the_index_names_every_document() -> None:
    index = (ROOT / "docs/README.md").read_text()
    missing = [path.name for path in (*DOCS, *LOG) if f"({path.relative_to(ROOT / 'docs')})" not in index]
    assert missing == ["README.md"]


@pytest.mark.parametrize("document", [ROOT / "README.md", *DOCS], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_exist(document: Path) -> None:
    assert unknown_commands(document.read_text()) == []


@pytest.mark.parametrize("document", [ROOT / "README.md", *DOCS], ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_documents_exist(document: Path) -> None:
    named = set(re.findall(r"`((?:app|training|tests|deploy|docs|models)/[\w./-]*)`", document.read_text()))
    assert {name for name in named if not (ROOT / name).exists()} == set()


class TestTheChecks:
    def test_a_broken_link_is_found(self) -> None:
        text = "[a](results.md#speed) [b](nothing.md) [c](#headless) [d](../README.md#nothing) `[e](code.md)` [f](https://x)"
        assert broken_links(ROOT / "docs/load.md", text) == ["nothing.md", "#headless", "../README.md#nothing"]

    def test_a_command_that_is_gone_is_found(self) -> None:
        text = "python -m app; python -m tests.benchmarks.serving.peers; python tests/gone.py; python -m tests.nothing"
        assert unknown_commands(text) == ["tests/nothing", "tests/gone"]


def named_tests(text: str) -> list[tuple[str, str]]:
    """File and function of each `tests/…py::test_…` in the text."""
    return re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = named_tests((ROOT / "SECURITY.md").read_text())
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file() or f"def {name}(" not in (ROOT / file).read_text()
    ]
    assert missing == []


def test_every_promise_of_the_threat_model_names_a_test() -> None:
    _, *tables = (ROOT / "SECURITY.md").read_text().split("| promise | test |\n| --- | --- |\n")
    rows = [row for table in tables for row in table.partition("\n\n")[0].splitlines()]
    assert len(rows) > 20
    assert [row for row in rows if not named_tests(row)] == []
