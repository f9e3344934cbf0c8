"""Copy a preset into params.yaml and run the pipeline, as a DVC experiment.

``python3 -m smollm.operate.presets tiny`` is what `make repro PRESET=tiny` runs.
"""

import logging
import sys
from itertools import dropwhile, takewhile
from pathlib import Path

from smollm.config.file import load
from smollm.errors import ConfigError


def copy(preset: Path, params: Path) -> None:
    """Replace the settings in `params` by those in `preset`; each file keeps its own heading comment.

    Raises:
        ConfigError: there is no such preset, or it has a bad setting.
    """
    if not preset.exists():
        names = ", ".join(sorted(path.stem for path in preset.parent.glob("*.yaml")))
        raise ConfigError(f"PRESET must name a file in {preset.parent.name}/, got {preset.stem!r}; use one of {names}")
    load(preset)
    heading, settings = (path.read_text(encoding="utf-8").splitlines(keepends=True) for path in (params, preset))
    kept = [*takewhile(_is_comment, heading), *dropwhile(_is_comment, settings)]
    params.write_text("".join(kept), encoding="utf-8")


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def main() -> None:
    root = Path.cwd()
    try:
        copy(root / "presets" / f"{sys.argv[1]}.yaml", root / "params.yaml")
    except ConfigError as error:
        sys.exit(f"ERROR: {error}")
    from dvc.cli import main as dvc

    for name in ("dvc_data.hashfile.checkout", "dvc_data.index.checkout"):
        # before the first run DVC warns about every output that does not exist yet
        logging.getLogger(name).addFilter(lambda record: "No file hash info" not in str(record.msg))
    sys.exit(dvc(["exp", "run"]))


if __name__ == "__main__":
    main()
