"""docs/data.md: its commands do what it says."""

import re
from pathlib import Path

import pytest
from support.clone import Clone
from support.structure import ROOT

pytestmark = pytest.mark.slow


def test_the_commands_that_need_no_network_run_as_they_are_written(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    blocks = [block for block in re.findall(r"```bash\n(.*?)```", text, re.S) if "hub.dataset" not in block]
    assert len(blocks) == 3
    clone = Clone.of_working_tree(tmp_path / "project", with_tokens=True)
    clone.repro("tokenize")
    clone.commit("results")
    look, packages, files = (
        clone.run("bash", "-euo", "pipefail", "-c", block, VENV="", GIT_AUTHOR_NAME="t", GIT_AUTHOR_EMAIL="t@localhost")
        for block in blocks
    )
    assert "Text by stage and split" in look.stdout
    assert look.stdout.count("A document of pretrain/train") == 2 + 5
    assert "Ran experiment(s): numpy-only" in packages.stdout
    assert "Ran experiment(s): notes" in files.stdout
    assert clone.json("data/tokens/pretrain/manifest.json")["versions"].keys() == {
        "data/raw/notes/modules.jsonl.gz",
        "data/raw/notes/zen.txt",
    }
    names = [row[4] for row in clone.rows("data/tokens/pretrain/documents.tsv")]
    assert names == [*(f"data/raw/notes/modules.jsonl.gz#{n}" for n in range(5)), "data/raw/notes/zen.txt"]
