"""Publish a model to the Hugging Face hub, with a model card: ``python3 -m smollm.share.publish`` (`make publish`).

With ``--to`` the same files are written to a folder instead.
"""

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from smollm.errors import ConfigError
from smollm.model.export import read_config
from smollm.operate.models import find_model
from smollm.share.card import CARD, model_card
from smollm.share.hub import HubRepository
from smollm.share.record import read_record
from smollm.stage.run import main
from smollm.state.files import link_or_copy, write_atomically
from smollm.state.workspace import Workspace

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def run(arguments: Sequence[str] | None = None) -> None:
    """Publish as the command line asks for.

    Raises:
        PipelineError: with a line for the user.
    """
    options = _parse(arguments)
    if options.repository is not None and not _REPOSITORY.fullmatch(options.repository):
        name = options.repository.rpartition("/")[2] or "name"
        raise ConfigError(f"REPO must name an owner and a model, got {options.repository!r}; write it as user/{name}")
    if options.to is not None and options.to.exists() and any(options.to.iterdir()):
        raise ConfigError(f"--to must name a new or an empty folder, got {options.to}; remove it or name another")
    hub = None if options.repository is None else HubRepository(options.repository)
    licence: str | None = options.license or (hub.licence() if hub else None)
    workspace = Workspace.find(Path.cwd())
    with find_model(options.model, workspace) as found:
        config = read_config(found.directory / "config.json")
        record = read_record(found, workspace)
        card = model_card(options.repository or options.to.resolve().name, config, record, licence)
        if hub is None:
            _write(options.to, found.directory, card, shutil.copyfile)
            print(f"{found.shown}: written to {options.to}, with a card in {CARD}")
            return
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), found.directory, card, link_or_copy)
            url = hub.publish(Path(folder), options.private, f"Publish {found.shown}")
    print(f"{found.shown}: published at {url}")
    if not licence:
        print("The card states no licence: fill it in, or publish again with --license (e.g. --license apache-2.0)")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m smollm.share.publish", description="Publish a model to the Hugging Face hub."
    )
    add = parser.add_argument
    add("repository", nargs="?", metavar="OWNER/NAME", help="the model's name on the hub")
    add(
        "--model",
        default="models/finetune",
        metavar="NAME",
        help="a folder, a DVC or Git revision (low, v1, low:pretrain), or an MLflow run's id (models/finetune)",
    )
    add("--private", action="store_true", help="only you, or your organization, can see it")
    add("--license", metavar="ID", help="the hub's identifier of a licence, e.g. apache-2.0 (as on the hub already)")
    add("--to", type=Path, metavar="FOLDER", help="write the files to a folder, and publish nothing")
    options = parser.parse_args(arguments)
    if (options.repository is None) == (options.to is None):
        parser.error("give the model's name on the hub (make publish REPO=user/name), or --to FOLDER")
    return options


def _write(target: Path, model: Path, card: str, place: Callable[[Path, Path], object]) -> None:
    """Write a model's files and its card to a folder."""
    for file in sorted(path for path in model.rglob("*") if path.is_file() and path.name != CARD):
        (target / file.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
        place(file, target / file.relative_to(model))
    write_atomically(target / CARD, card)


if __name__ == "__main__":
    main(run)
