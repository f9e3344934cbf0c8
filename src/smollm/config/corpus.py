"""Section `corpus`: which text the model learns from."""

import string
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from smollm.config.fields import NOT_EMPTY, Rule, above, at_least, between

RAW_DATA = "data/raw/"
"""The folder for the user's own text, which DVC watches: any change in it reruns tokenize."""


class CorpusSource(Enum):
    """Where documents come from."""

    PYTHON = "python"
    """Source files of the standard library and of installed packages; needs no download."""
    PYTHON_DOCS = "python-docs"
    """Their docstrings and documentation files."""
    FILES = "files"
    """The user's own txt, md, jsonl, jsonlines, ndjson, json, parquet, csv or tsv files, compressed or not."""
    HUB = "hub"
    """A dataset of the Hugging Face hub."""


_NAMES = Rule(all, "must hold no empty name", "remove it")

_INSIDE_RAW = Rule(
    lambda globs: all(g.startswith(RAW_DATA) and ".." not in g for g in globs),
    f"must name files below {RAW_DATA}, the folder that DVC watches",
    f"put the text there and write e.g. {RAW_DATA}*.txt",
)

_WHOLE_STARS = Rule(
    lambda globs: all(part == "**" or "**" not in part for g in globs for part in g.split("/")),
    "must have ** alone between slashes",
    f"write e.g. {RAW_DATA}**/*.txt",
)


def template_keys(template: str) -> list[str]:
    """The keys in braces of a template for chat messages.

    Raises:
        ValueError: a brace is unmatched, or holds more than a key.
    """
    fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    keys = [str(key) for _, key, form, conversion in fields if not form and conversion is None]
    if len(keys) != len(fields) or not all(key.isidentifier() for key in keys):
        raise ValueError
    return keys


def _is_template(template: str) -> bool:
    try:
        return bool(template_keys(template))
    except ValueError:
        return False


_TEMPLATE = Rule(
    _is_template,
    "must hold keys of a message in braces, such as {content}",
    r'write e.g. "{role}: {content}\n", and a brace of the text twice',
)


@dataclass(frozen=True)
class HubDatasetConfig:
    """A dataset on the Hugging Face hub (source: hub)."""

    dataset: str | None
    """Repository, e.g. HuggingFaceTB/smollm-corpus."""
    name: str | None
    """The dataset's configuration, e.g. cosmopedia-v2."""
    split: str
    revision: str | None
    """Commit of the repository; pinned, so that the text cannot change unnoticed."""
    streaming: bool
    """Whether to read it over the network as needed instead of downloading it first."""


@dataclass(frozen=True)
class SourceConfig:
    """The text of one training stage."""

    source: CorpusSource
    files: Annotated[tuple[str, ...], _INSIDE_RAW, _WHOLE_STARS]
    """Globs below data/raw (source: files); `**` stands for folders of any depth."""
    text_column: str
    """The column or key with the text, in tables and hub datasets; dots lead to nested ones, as in data.text."""
    template: Annotated[str | None, _TEMPLATE]
    """Turns a message into text, if the column holds a chat: a list of messages with these keys."""
    hub: HubDatasetConfig


@dataclass(frozen=True)
class CorpusConfig:
    packages: Annotated[tuple[str, ...], NOT_EMPTY, _NAMES]
    """For the two python sources: `stdlib`, and names of installed distributions."""
    max_megabytes: Annotated[float, above(0)]
    """Upper bound of each stage's text, in MB (10^6 bytes of UTF-8)."""
    max_documents: Annotated[int | None, at_least(1)]
    """Upper bound of each stage's documents."""
    validation_fraction: Annotated[float, above(0), between(0, 0.5)]
    """Fraction of the documents held out from training."""
    max_null_fraction: Annotated[float, between(0, 1)]
    """Largest fraction of a table's rows whose text may be null; such rows are left out."""
    near_duplicate_similarity: Annotated[float | None, between(0.5, 0.95)]
    """Documents about this similar to an earlier one are left out; null: exact duplicates only.

    It is the Jaccard similarity of their sets of five-word sequences.
    """
    pretrain: SourceConfig
    finetune: SourceConfig
