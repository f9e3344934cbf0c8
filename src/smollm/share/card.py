"""The model card: README.md of a published model, made from what is known of it."""

import json
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from smollm.config.model import ModelConfig
from smollm.model.throughput import parameter_count
from smollm.share.record import Record
from smollm.tracking.console import counted

CARD = "README.md"
"""The name of a card's file."""

_SOURCES = {
    "python": "Python source code of {packages}",
    "python-docs": "documentation of {packages}: docstrings, READMEs and descriptions",
    "files": "own files ({files})",
    "hub": "the dataset `{dataset}` of the Hugging Face hub, revision {revision}",
}

_NAMED_PACKAGES = 8


def model_card(name: str, config: ModelConfig, record: Record, licence: str | None) -> str:
    """Markdown with a head of metadata, as the Hugging Face hub reads it.

    Args:
        name: what to call the model; `owner/name` where it is on the hub.
        config: its shape.
        record: how it was made; what is not known is left out.
        licence: the hub's identifier of one, e.g. apache-2.0; None: the card says that it is missing.
    """
    head = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=licence,
        tags=["llama", "base-model", *(["trained-from-scratch"] if record.stage else [])],
    )
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {name.rpartition('/')[2]}",
        _introduction(config, record),
        _use(name, config, record),
        _results(record),
        _data(record),
        _recipe(record),
        _origin(record),
        _licence(licence),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _introduction(config: ModelConfig, record: Record) -> str:
    made = {
        "pretrain": " It was trained from random weights.",
        "finetune": " It was trained from random weights, then finetuned on other text.",
    }
    return (
        f"A Llama of {parameter_count(config):,} parameters with a context of {config.max_position_embeddings:,} "
        f"tokens.{made.get(record.stage, '')}\n\n"
        "It is a base model: it continues text, and has no chat template by design, since it was trained with none. It "
        "was not trained to follow instructions or to be truthful or harmless, and it may repeat passages of "
        "its training text word for word."
    )


def _use(name: str, config: ModelConfig, record: Record) -> str:
    tokens = min(100, config.max_position_embeddings // 2)
    prompt = json.dumps(record.params.get("evaluation", {}).get("prompts", ["The "])[0], ensure_ascii=False)
    return f"""## Use

```python
import torch
from transformers import pipeline

generate = pipeline("text-generation", "{name}", dtype=torch.bfloat16)
print(generate({prompt}, max_new_tokens={tokens}, do_sample=True)[0]["generated_text"])
```

In batches, prompts are padded on the left with the end-of-text token."""


def _results(record: Record) -> str:
    if not record.metrics:
        return ""
    rows = []
    for stage, metrics in record.metrics.items():
        steps = {"best": metrics["best_step"], "last": metrics["step"]}
        values = {"best": metrics["best_bits_per_byte"], "last": metrics["bits_per_byte"]}
        kinds = ["best"] if steps["best"] == steps["last"] else ["best", "last"]
        for kind in kinds:
            name = f"{stage}, {kind if len(kinds) > 1 else 'best and last'}"
            here = " (this model)" if stage == record.stage and steps[kind] == metrics["exported_step"] else ""
            rows.append(f"| {name}{here} | {steps[kind]:,} | {values[kind]:.4f} |")
        if "pretrain_bits_per_byte" in metrics:
            before, after = metrics["initial_pretrain_bits_per_byte"], metrics["pretrain_bits_per_byte"]
            rows.append(
                f"| {stage}, on pretrain's held-out text | {metrics['step']:,} | {before:.4f} before, {after:.4f} |"
            )
    lines = ["| state | step | bits per byte |", "|---|---|---|", *rows]
    return (
        "## Results\n\n" + "\n".join(lines) + "\n\nBits per byte is the loss per byte of held-out text that the model "
        "was never trained on. Lower is better, and figures compare only within one text."
    )


def _data(record: Record) -> str:
    corpus = record.params.get("corpus", {})
    rows = []
    for stage, metrics in record.metrics.items():
        counts = record.text.get(stage, {})
        sizes = [
            f"{_counts(counts[split])} {what}"
            for split, what in (("train", "to train on"), ("validation", "held out"))
            if split in counts
        ]
        rows.append(f"| {stage} | {_source(corpus, stage)} | {', '.join(sizes)} | `{metrics['corpus']}` |")
    if not rows:
        return ""
    table = "\n".join(["| stage | text | size | digest |", "|---|---|---|---|", *rows])
    return f"## Data\n\n{table}\n\nThe digest is the first 16 digits of the SHA-256 over all documents, of both splits."


def _counts(of_split: dict[str, Any]) -> str:
    documents, tokens = counted(of_split["documents"], "document"), counted(of_split["tokens"], "token")
    return f"{documents} ({of_split['bytes'] / 1e6:,.1f} MB, {tokens})"


def _source(corpus: dict[str, Any], stage: str) -> str:
    settings = corpus.get(stage)
    if not settings:
        return ""
    packages = [str(package) for package in corpus.get("packages", [])]
    more = f" and {len(packages) - _NAMED_PACKAGES} more" if len(packages) > _NAMED_PACKAGES else ""
    hub = settings.get("hub", {})
    return _SOURCES.get(settings["source"], settings["source"]).format(
        packages=", ".join(packages[:_NAMED_PACKAGES]) + more,
        files=", ".join(settings.get("files", [])),
        dataset=hub.get("dataset"),
        revision=hub.get("revision"),
    )


def _recipe(record: Record) -> str:
    if not record.params:
        return ""
    rows = []
    for stage in record.metrics:
        training = record.params.get(stage)
        if training:
            optimizer = training["optimizer"]
            tokens = training["sequences_per_step"] * training["sequence_length"]
            last = record.metrics[stage]["step"]
            rows.append(f"| {stage} | {last:,} | {tokens:,} | {optimizer['kind']} | {optimizer['lr']} |")
    table = "\n".join(
        ["| stage | last step | tokens a step | optimizer | peak learning rate |", "|---|---|---|---|---|", *rows]
    )
    text = yaml.safe_dump(record.params, sort_keys=False, allow_unicode=True).strip()
    return f"## Recipe\n\n{table}\n\n<details><summary>All settings</summary>\n\n```yaml\n{text}\n```\n\n</details>"


def _origin(record: Record) -> str:
    lines = []
    if run := record.run.get("mlflow_run_id"):
        experiment = record.run.get("mlflow_experiment")
        lines.append(f"MLflow run `{run}`" + (f" of the experiment `{experiment}`." if experiment else "."))
    if device := record.run.get("device"):
        lines.append(f"Trained on {device}.")
    if record.restore:
        lines.append("In the repository that trained it, this brings back its code, settings and checkpoint:")
    text = "\n".join(lines)
    return f"## Origin\n\n{text}" + (f"\n\n```bash\n{record.restore}\n```" if record.restore else "") if text else ""


def _licence(licence: str | None) -> str:
    if licence:
        return f"## Licence\n\n{licence}"
    return (
        "## Licence\n\nTo be filled in: no licence is stated yet. Whoever publishes the model chooses one that the "
        "texts it was trained on allow, and writes it here and as `license:` in the head of this file."
    )
