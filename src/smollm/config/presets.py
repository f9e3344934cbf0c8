"""Copy a preset into params.yaml and run the pipeline, as a DVC experiment.

``python3 -m smollm.config.presets tiny`` runs ``dvc exp run`` with a ``-S`` for every setting of
``presets/tiny.yaml``; DVC edits params.yaml in place and keeps its comments.
"""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from smollm.config.file import load, read_values
from smollm.errors import ConfigError


def overrides(preset: Path) -> list[str]:
    """``section.name=value`` for every setting of a preset, as DVC's ``-S`` takes them.

    Raises:
        ConfigError: there is no such preset, or it holds a bad setting.
    """
    if not preset.exists():
        names = ", ".join(sorted(path.stem for path in preset.parent.glob("*.yaml")))
        raise ConfigError(f"PRESET must name a file in {preset.parent.name}/, got {preset.stem!r}; use one of {names}")
    load(preset)
    return [f"{key}={json.dumps(value)}" for key, value in _leaves(read_values(preset), "")]


def _leaves(values: object, where: str) -> Iterator[tuple[str, object]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, f"{where}.{key}" if where else str(key))
    else:
        yield where, values


def main() -> None:
    root = Path.cwd()
    try:
        settings = overrides(root / "presets" / f"{sys.argv[1]}.yaml")
    except ConfigError as error:
        sys.exit(f"ERROR: {error}")
    flags = [part for setting in settings for part in ("-S", setting)]
    from dvc.cli import main as dvc

    for name in ("dvc_data.hashfile.checkout", "dvc_data.index.checkout"):
        # before its first run an experiment warns of every output that is not there yet
        logging.getLogger(name).addFilter(lambda record: "No file hash info" not in str(record.msg))
    sys.exit(dvc(["exp", "run", *flags]))


if __name__ == "__main__":
    main()
