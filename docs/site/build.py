"""Build the docs site in site/html (`make docs`) from README.md, CONTRIBUTING.md, CHANGELOG.md, docs/ and docstrings.

The pages are first gathered in site/pages: those of docs/ and of the root, with some links changed, and one for
each package of the library, which mkdocstrings fills.
"""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"
PAGES = SITE / "pages"

FROM_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}

RESULTS = ["results.md", "experiments.md"]
GUIDES = ["own-text.md", "data.md", "gpu.md", "parallel.md", "deploy.md", "dvc.md", "tracking.md", "reliability.md"]
"""In the order of the navigation; a page of docs/ that neither names comes after the other guides."""


def main() -> int:
    """
    Returns:
        the exit code: 1 if a link leads nowhere.
    """
    if missing := [name for name in ("zensical", "mkdocstrings") if find_spec(name) is None]:
        sys.exit(f"ERROR: {missing[0]} must be installed, is not; run `pip install zensical mkdocstrings-python`")
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("site"))
    guides = [*GUIDES, *sorted({path.name for path in PAGES.glob("*.md")} - {*GUIDES, *RESULTS})]
    for name, page in FROM_ROOT.items():
        shutil.copyfile(ROOT / name, PAGES / page)
    for path in PAGES.glob("*.md"):
        path.write_text(for_the_site(path.read_text(encoding="utf-8")), encoding="utf-8")
    for folder in (PAGES / "reference").iterdir():
        list_files(folder)
    sections = {
        "Home": ["index.md"],
        "Guides": guides,
        "Results": RESULTS,
        "Code": code_pages(),
        "Contributing": ["contributing.md", "changelog.md"],
    }
    navigation = ",\n".join(f"  {{{json.dumps(title)} = {json.dumps(pages)}}}" for title, pages in sections.items())
    settings = (ROOT / "docs" / "site" / "zensical.toml").read_text(encoding="utf-8")
    (SITE / "zensical.toml").write_text(settings.replace("nav = []", f"nav = [\n{navigation},\n]"), encoding="utf-8")
    return subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=SITE, check=False).returncode


def for_the_site(text: str) -> str:
    """A page with its links to pages of the root, to docs/ and to folders changed."""
    for name, page in FROM_ROOT.items():
        text = re.sub(rf"\]\((\.\./)?{name}", f"]({page}", text)
    text = text.replace("](docs/", "](")
    return re.sub(r"\]\((reference/[\w-]+)/?\)", r"](\1/index.md)", text)


def list_files(folder: Path) -> None:
    """Make a page that links to each file in a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"- [{name}]({name})" for name in names]
    (folder / "index.md").write_text("\n".join([f"# {folder.name}", "", *lines, ""]), encoding="utf-8")


def code_pages() -> list[str]:
    """Make a page of the public names of each package, and return the pages' names."""
    library = ROOT / "src" / "smollm"
    packages = [path.parent for path in library.glob("*/__init__.py")]
    pages = []
    (PAGES / "code").mkdir()
    for package in sorted([*packages, library / "errors.py"]):
        modules = sorted(package.rglob("*.py")) if package.is_dir() else [package]
        names = [".".join(path.relative_to(library.parent).with_suffix("").parts) for path in modules]
        blocks = [f"::: {name.removesuffix('.__init__')}" for name in names]
        page = PAGES / "code" / f"{package.stem}.md"
        page.write_text("\n\n".join([f"# smollm.{package.stem}", *blocks, ""]), encoding="utf-8")
        pages.append(f"code/{page.name}")
    return pages


if __name__ == "__main__":
    sys.exit(main())
