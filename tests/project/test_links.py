"""The links between README, CONTRIBUTING, CHANGELOG and docs/, and the files that they name."""

import re
from pathlib import Path

import pytest
from support.structure import ROOT

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:src/|tests/|docs/|benchmarks/|stages/|presets/)[\w./-]*\w\.(?:py|md|yaml))`")


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_files_that_a_document_names_exist(document: Path) -> None:
    for name in NAMED.findall(document.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


def test_every_page_of_docs_is_linked_from_the_readme_or_another_page() -> None:
    linked = {
        (document.parent / link.partition("#")[0]).resolve()
        for document in DOCUMENTS
        for link in LINK.findall(document.read_text(encoding="utf-8"))
    }
    assert {path.resolve() for path in (ROOT / "docs").glob("*.md")} <= linked
