"""The docs site: it can be built, nothing on it leads nowhere, and it loads nothing from the network."""

import runpy
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from support.clone import Clone
from support.structure import ROOT

BUILD = ROOT / "docs" / "site" / "build.py"

needs_zensical = pytest.mark.skipif(
    not (find_spec("zensical") and find_spec("mkdocstrings")), reason="needs the extra `docs`: `make docs` installs it"
)


class Links(HTMLParser):
    """What a page links to and loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "a":
            self.links.append(values.get("href") or "")
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(values.get("href") or "")
        elif tag in ("img", "script"):
            self.loaded.append(values.get("src") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Clone.of_working_tree(tmp_path_factory.mktemp("site") / "project", with_store=False)
    project.run(sys.executable, "docs/site/build.py")  # which fails for a link between pages that leads nowhere
    return project.directory / "site" / "html"


def test_the_pages_of_the_navigation_are_there() -> None:
    names = runpy.run_path(str(BUILD))
    for name in [*names["GUIDES"], *names["RESULTS"]]:
        assert (ROOT / "docs" / name).is_file(), name


def test_links_of_the_root_lead_from_docs() -> None:
    for_the_site = runpy.run_path(str(BUILD))["for_the_site"]
    text = (
        "[a](docs/gpu.md#speed) [b](CONTRIBUTING.md) ![c](docs/images/x.png) [d](reference/run) [e](https://x/docs/y)"
    )
    assert for_the_site(text) == (
        "[a](gpu.md#speed) [b](contributing.md) ![c](images/x.png) [d](reference/run/index.md) [e](https://x/docs/y)"
    )


@needs_zensical
def test_every_page_of_the_docs_and_every_package_has_a_page(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file(), page.name
    for package in (ROOT / "src" / "smollm").glob("*/__init__.py"):
        assert (site / "code" / f"{package.parent.name}.html").is_file(), package
    assert 'id="smollm.training.schedule.learning_rate"' in (site / "code" / "training.html").read_text()


@needs_zensical
def test_links_and_images_of_the_site_lead_to_files_and_nothing_is_loaded_from_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        found = Links(page)
        assert not [url for url in found.loaded if urlsplit(url).netloc], page
        for url in map(urlsplit, [*found.links, *found.loaded]):
            if url.path and not url.scheme and not url.netloc and page.name != "404.html":
                target = page.parent / unquote(url.path)
                assert target.is_file() or (target / "index.html").is_file(), f"{page.relative_to(site)}: {url.path}"
