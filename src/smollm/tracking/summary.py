"""What a person reads when a stage is done."""

from typing import Any

TOKENIZE = "tokenize: done; the token files are in data/tokens/, what they hold in reports/tokenize/corpus.txt\n"

_INDENT = "\n" + 20 * " "


def training(stage: str, metrics: dict[str, Any], speed: dict[str, Any], sample: str | None) -> str:
    """The results of a training stage, and where to look next.

    Args:
        stage: pretrain or finetune.
        metrics: its metrics.json.
        speed: tokens_per_second and step_ms.
        sample: a prompt with the text generated from it; None if there is none.
    """
    lines = [
        f"\n{stage}: done at step {metrics['step']}",
        f"  training loss     {metrics['first_train_loss']:.3f} -> {metrics['train_loss']:.3f}",
        f"  validation        {metrics['validation_loss']:.3f} nats per token, "
        f"{metrics['initial_bits_per_byte']:.3f} -> {metrics['bits_per_byte']:.3f} bits per byte",
    ]
    if metrics["best_step"] != metrics["step"]:
        lines.append(
            f"  best validation   {metrics['best_bits_per_byte']:.3f} bits per byte, at step {metrics['best_step']}"
        )
    if "pretrain_bits_per_byte" in metrics:
        before, after = metrics["initial_pretrain_bits_per_byte"], metrics["pretrain_bits_per_byte"]
        lines.append(f"  on pretrain's     {before:.3f} -> {after:.3f} bits per byte of its held-out text")
    lines.append(f"  speed             {speed['tokens_per_second']:,.0f} tokens/s, {speed['step_ms']:.1f} ms a step")
    if sample is not None:
        lines.append(f"  sample            {sample.replace(chr(10), _INDENT)}")
    return "\n".join(
        [
            *lines,
            f"  reports           reports/{stage}/ (loss.svg, samples.tsv, training_log.txt)",
            f"  model             models/{stage}/ of step {metrics['exported_step']}, "
            f"{metrics['exported_bits_per_byte']:.3f} bits per byte (for transformers' from_pretrained)",
            "  compare runs      make ui\n",
        ]
    )


def evaluation(metrics: dict[str, Any]) -> str:
    """The results of the stage evaluate, from its metrics.json."""
    lines = ["\nevaluate: done"]
    for text in ("pretrain", "finetune"):
        values = metrics[text]
        runs = (values[key]["longest_tokens"] for key in ("overlap", "held_out_overlap"))
        lines.append(
            f"  {text:<18}{values['bits_per_byte']:.3f} bits per byte of its held-out text; a sample shares at most "
            "{} tokens in a row with training text, held-out text {}".format(*runs)
        )
    if "code" in metrics:
        code = metrics["code"]
        real = f"{code['held_out_accepted']:.0%} of held-out files"
        lines.append(f"  Python            the parser accepts {code['accepted']:.0%} of samples, {real}")
    for task, values in metrics.get("tasks", {}).items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        lines.append(f"  {task:<17} {shown}")
    return "\n".join([*lines, "  report            reports/evaluate/report.md\n"])
