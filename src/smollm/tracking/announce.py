"""The lines that stages print and log while they run, built from plain values."""

from smollm.tracking.console import counted, duration

SUITABLE_EPOCHS = (6, 24)
"""Passes through a small text between which models were best on its held-out part."""

MANY_EPOCHS = 30
"""Passes above which a warning is due."""

PUBLISHING_AGAIN = "already finished; publishing its outputs again"


def corpus_plan(sources: dict[str, str], max_megabytes: float) -> str:
    """Where the text comes from: `sources` maps each stage to the kind of its source."""
    text = ", ".join(f"{source} for {stage}" for stage, source in sources.items())
    return f"{text}; at most {max_megabytes:g} MB each"


def tokenizer_ready(vocab_size: int, source: str, seconds: float) -> str:
    return f"tokenizer of {vocab_size:,} tokens ({source}) in {seconds:.1f} s"


def text_resumed(stage: str, documents: int, text_bytes: int) -> str:
    """An earlier start of `tokenize` encoded the beginning of a stage's text."""
    return f"{stage}: resumed after {counted(documents, 'document')}, {text_bytes / 1e6:,.1f} MB"


def tokens_written(
    stage: str,
    documents: int,
    text_bytes: int,
    train_tokens: int,
    validation_tokens: int,
    how_split: str,
    bytes_per_token: float,
) -> str:
    """The size of a stage's token files."""
    read = f"{counted(documents, 'document')}, {text_bytes / 1e6:,.1f} MB"
    return (
        f"{stage}: {read}, {train_tokens:,} tokens to train on and {validation_tokens:,} held out "
        f"({how_split}), {bytes_per_token:.2f} bytes per token"
    )


def near_duplicates(stage: str, counts: dict[str, float]) -> str:
    """What was left out as near-duplicates, and how much held-out text would have had one in training."""
    share = counts.get("held_out_share_with_one_in_training")
    held_out = "" if share is None else f"; {share:.1%} of the held-out text would have had one in training"
    removed = counted(int(counts["removed"]), "near-duplicate")
    return f"{stage}: left out {removed}, {counts['removed_bytes'] / 1e6:,.1f} MB{held_out}"


def training_plan(
    steps: int, last_step: int, tokens_per_step: int, flops_per_token: float, parameters: int, processes: int
) -> str:
    """The work of a training stage."""
    tokens = steps * tokens_per_step
    shared = f"; {processes} processes" if processes > 1 else ""
    return (
        f"{counted(steps, 'step')} (to step {last_step}) of {tokens_per_step:,} tokens, {tokens / 1e6:,.1f} M in all, "
        f"{flops_per_token * tokens / 1e15:,.3g} PFLOP; {parameters:,} parameters{shared}"
    )


def hardware(name: str, device: str, precision: str, is_compiled: bool) -> str:
    """What a stage computes on."""
    return f"{name}, {device}, {precision}, {'compiled' if is_compiled else 'not compiled'}"


def resumed(step: int) -> str:
    return f"resumed from step {step}"


def started_from(stage: str, step: int) -> str:
    """A training stage begins with another stage's checkpoint."""
    return f"starting from {stage}'s checkpoint at step {step}"


def processes_restarted(count: int, limit: int) -> str:
    return f"a process ended; all were restarted from the last checkpoint, restart {count} of {limit}"


def pace(steps: int, seconds_per_step: float) -> str:
    """How long the remaining `steps` take."""
    more = counted(steps, "more step") + (" takes" if steps == 1 else " take")
    return f"{more} about {duration(steps * seconds_per_step)}, at {1000 * seconds_per_step:,.4g} ms a step"


def compilation_failed(error: Exception, cache: str) -> str:
    """`cache` is the compiler's folder, in which a process that is killed while it compiles leaves torn files."""
    reason = str(error).splitlines()[0]
    return f"torch.compile failed ({reason}); continuing without it; if it worked before, remove its cache {cache}"


def kernels_failed(error: Exception) -> str:
    return f"the Triton kernels failed ({type(error).__name__}: {error}); continuing with torch.compile"


def picture_failed(name: str, error: Exception) -> str:
    return f"{name} cannot be drawn ({type(error).__name__}: {error}); continuing without it"


def git_refused(error: Exception) -> str:
    return f"Git did not report commit and branch, so MLflow has neither for this run. {error}"


def best_damaged(error: Exception) -> str:
    return f"{error}; it was the best state, and the next validation takes its place"


def epochs(stage: str, steps: int, count: float) -> str:
    """How often training passes through the stage's text."""
    verb = "is" if steps == 1 else "are"
    return f"{counted(steps, 'step')} {verb} {count:,.3g} {'epoch' if count == 1 else 'epochs'} of {stage}'s text"


def weight_decay(decay: float, epochs: float) -> str:
    """The weight decay computed from `weight_decay_epochs`."""
    return f"weight decay {decay:.3g}, since weight_decay_epochs is {epochs:g}"


def replay(stage: str, fraction: float) -> str:
    """Some of the sequences are from the text of the earlier `stage`."""
    return f"{100 * fraction:.3g}% of the sequences replay {stage}'s text"


def many_epochs(stage: str, steps_per_epoch: float) -> str:
    """A warning that so many epochs overfit, with numbers of steps that suit the text."""
    low, high = (max(1, round(number * steps_per_epoch)) for number in SUITABLE_EPOCHS)
    return (
        f"the model will overfit in that many epochs: {low:,} to {high:,} steps ({SUITABLE_EPOCHS[0]} to "
        f"{SUITABLE_EPOCHS[1]} epochs) suit this text; set {stage}.steps or {stage}.epochs, or use "
        "`make repro PRESET=own-text`"
    )


def validation_stalled(validations: int, best_step: int, best: float, now: float) -> str:
    """Validation has stopped improving; training continues."""
    those = f"{validations} validations" if validations > 1 else "validation"
    return (
        f"no improvement in the last {those}: best {best:.3f} bits per byte at step {best_step}, {now:.3f} now; the "
        "best state is kept"
    )


def stopped_early(stage: str, validations: int, best_step: int) -> str:
    return f"stopped early: none of {validations} validations was better than step {best_step}'s ({stage}.patience)"


def worse_than_start(stage: str, start: float, exported: float) -> str:
    return (
        f"models/{stage} is worse on its own held-out text than what the stage started from: {exported:.3f} bits per "
        f"byte, {start:.3f} before; set {stage}.export to best, or lower its learning rate or steps"
    )


def start_is_best(stage: str, start: float, last: float) -> str:
    return (
        f"no step improved on what the stage started from ({start:.3f} bits per byte of its own held-out text, "
        f"{last:.3f} at the end), so models/{stage} is the model it started from; lower {stage}'s learning rate "
        "or steps"
    )


def run_incomplete(error: Exception) -> str:
    return f"MLflow is missing the final tags and files of this run: {error}"


def checkpoint_damaged(error: Exception) -> str:
    return f"{error}; going back to the checkpoint before it"


def measured(name: str, seconds: float) -> str:
    """The stage evaluate has taken one of its measurements, e.g. "held out pretrain"."""
    return f"{name}: measured in {duration(seconds)}"


def measured_before(name: str) -> str:
    """An earlier start of the stage took the measurement."""
    return f"{name}: already measured before the restart"
