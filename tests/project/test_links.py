"""The links between README, CONTRIBUTING, CHANGELOG and docs/, and the files that they name."""

import re
from pathlib import Path

import pytest
from support.structure import ROOT

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATHS = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|yaml))`")
NAMES = re.compile(r"`([\w.]+)(?:\(\))?`(?: in|,)? \(?`((?:\w+/)+\w+\.py)`")
"""A name of the code, with the file that it is said to be in."""


def anchors(text: str) -> set[str]:
    """The fragment of each heading, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, fragment = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        if fragment:
            assert fragment in anchors(target.read_text(encoding="utf-8")), link


def named_file(name: str) -> Path | None:
    """A file that a document names from the root or from the library's folder."""
    return next((base / name for base in (ROOT, ROOT / "src/smollm") if (base / name).exists()), None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_files_that_a_document_names_exist(document: Path) -> None:
    for name in PATHS.findall(document.read_text(encoding="utf-8")):
        made_by_a_run = name.startswith(("data/", "reports/", "models/", "checkpoints/", "mlruns/"))
        assert made_by_a_run or named_file(name), name


def test_names_of_code_are_in_the_files_that_contributing_names() -> None:
    named = NAMES.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(named) > 5
    for name, file in named:
        path = named_file(file)
        assert path, file
        assert re.search(rf"\b{name.split('.')[-1]}\b", path.read_text(encoding="utf-8")), f"{name} in {file}"


def test_every_page_of_docs_is_linked_from_the_readme_or_another_page() -> None:
    linked = {
        (document.parent / link.partition("#")[0]).resolve()
        for document in DOCUMENTS
        for link in LINK.findall(document.read_text(encoding="utf-8"))
    }
    assert {path.resolve() for path in (ROOT / "docs").glob("*.md")} <= linked
