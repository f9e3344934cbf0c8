"""Pictures: the same bytes whatever the user's settings, and none that ends a stage."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.clone import environment
from support.structure import ROOT

from smollm.stage.picture import draw


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such backend", "TkAgg"])
def test_the_users_backend_and_style_do_not_count(backend: str, tmp_path: Path) -> None:
    draw(tmp_path / "expected.svg", lambda axes: axes.plot([1, 2]))
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nsvg.fonttype: none\n")
    program = "import sys; from pathlib import Path; from smollm.stage.picture import draw\n"
    program += "draw(Path(sys.argv[1]), lambda axes: axes.plot([1, 2]))"
    variables = {"MPLBACKEND": backend, "PYTHONPATH": str(ROOT / "src"), "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    command = [sys.executable, "-c", program, tmp_path / "drawn.svg"]
    subprocess.run(command, env=environment() | variables, check=True)
    assert (tmp_path / "drawn.svg").read_bytes() == (tmp_path / "expected.svg").read_bytes()


def test_a_picture_that_fails_says_why_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(axes: object) -> None:
        raise ValueError("no <font> there")

    draw(tmp_path / "loss.svg", fail)
    assert "loss.svg cannot be drawn (ValueError: no <font> there)" in capsys.readouterr().out
    text = "".join(ElementTree.fromstring((tmp_path / "loss.svg").read_text()).itertext())
    assert text == "ValueError: no <font> there"


def test_a_picture_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("kept")
    (tmp_path / "loss.svg").hardlink_to(tmp_path / "cache")
    draw(tmp_path / "loss.svg", lambda axes: axes.plot([1, 2]))
    assert (tmp_path / "cache").read_text() == "kept"
