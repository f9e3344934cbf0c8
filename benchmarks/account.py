"""Where a training stage's wall time went, by part, from the journals of finished stages, side by side.

    PYTHONPATH=src python3 benchmarks/account.py [.resume/pretrain/9ae271c74afb30fd ...]

Without arguments: the newest state of each stage in this repository. Several folders, such as those of a run on one
GPU and of one on four, become columns of one table. Each part has its seconds and its share of the whole.

The journal has the times of records, and with each `speed` record the seconds that the processes have lived and those
that they spent in steps. What passes besides steps belongs to the start, if hardware was recorded meanwhile; a sample
to its own record, if its step was logged; the rest to the validation, if there was one, else to checkpoints. A process
lives from its own start, so what DVC and the agent of several processes take before it is not counted.
"""

import argparse
from itertools import pairwise
from pathlib import Path

from smollm.state.journal import Kind, Record, read

PARTS = {
    "begin": "process start to first line",
    "assemble": "first line to model on the hardware",
    "restore": "from there to first logged step, without steps",
    "step": "steps",
    "validation": "validation",
    "sample": "samples",
    "checkpoint": "checkpoints, and the rest of the loop",
    "end": "last samples and checkpoint",
    "lost": "between a process and the next: kill, restart",
    "publish": "publish outputs",
}
"""Parts of a stage in their order, and how they are printed."""


def account(records: list[Record], published: float | None) -> dict[str, float]:
    """Seconds by part of `PARTS`.

    Args:
        records: of a finished stage, in the order of its journal.
        published: when run.json was written, if it is there.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    lived = useful = before = 0.0
    """Seconds up to the last `speed` record, and its time."""
    since: list[Record] = []
    """That record, and those after it."""
    for record in records:
        since.append(record)
        if record.kind != Kind.SPEED:
            continue
        values = record.values
        rest = values["lived_seconds"] - lived - (values["useful_seconds"] - useful)
        parts["step"] += values["useful_seconds"] - useful
        hardware = next((other for other in reversed(since) if other.kind == Kind.HARDWARE), None)
        if hardware is not None:
            started = record.time - (values["lived_seconds"] - lived)
            first = next(other for other in since if other.kind == Kind.EVENT and other.time >= started)
            parts["begin"] += first.time - started
            parts["assemble"] += hardware.time - first.time
            parts["restore"] += rest - (hardware.time - started)
            parts["lost"] += started - before if before else 0.0
        else:
            sample = sample_seconds(since)
            parts["sample"] += sample
            parts["validation" if any(r.kind == Kind.VALIDATION for r in since) else "checkpoint"] += rest - sample
        lived, useful, before = values["lived_seconds"], values["useful_seconds"], record.time
        since = [record]
    complete = next(record.time for record in records if record.kind == Kind.COMPLETE)
    parts["end"] = complete - before
    parts["publish"] = max(0.0, published - complete) if published else 0.0
    return parts


def sample_seconds(records: list[Record]) -> float:
    """Seconds of the samples in `records` that directly follow another record of the same step."""
    pairs = ((before, after) for before, after in pairwise(records) if before.step == after.step)
    return sum(after.time - before.time for before, after in pairs if after.kind == Kind.SAMPLE)


def newest_states() -> list[Path]:
    """The folder of the state that each stage used last."""
    stages = [path.parents[1] for path in Path(".resume").glob("*/*/journal.jsonl")]
    used = {stage: max(stage.glob("*/journal.jsonl"), key=lambda path: path.stat().st_mtime) for stage in stages}
    return [used[stage].parent for stage in used if stage.name != "tokenize"]


def show(titles: list[str], columns: list[dict[str, float]], notes: list[str]) -> None:
    """Print the table: a row for each part, a column for each state."""
    print(" " * 50 + "".join(f"{title:>20}" for title in titles))
    for part, name in PARTS.items():
        cells = [f"{column[part]:10.2f} s {100 * column[part] / sum(column.values()):5.1f} %" for column in columns]
        print(f"{name:50}" + "".join(f"{cell:>20}" for cell in cells))
    print(f"{'all':50}" + "".join(f"{f'{sum(column.values()):.2f} s':>20}" for column in columns))
    for title, note in zip(titles, notes, strict=True):
        print(f"{title}: {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states", nargs="*", type=Path, help="folders of .resume/")
    states: list[Path] = parser.parse_args().states or newest_states()
    if not states:
        raise SystemExit(".resume must hold the state of a finished stage, got none; run `dvc repro -s pretrain` first")
    titles, columns, notes = [], [], []
    for state in states:
        records = [record for record, _ in read(state / "journal.jsonl")]
        if not any(record.kind == Kind.COMPLETE for record in records):
            raise SystemExit(f"{state}: must be the state of a finished stage, got one that is not complete")
        run = state.resolve().parents[2] / "reports" / state.parent.name / "run.json"
        columns.append(account(records, run.stat().st_mtime if run.exists() else None))
        titles.append(f"{state.parent.name}/{state.name[:6]}")
        hardware = [record.values for record in records if record.kind == Kind.HARDWARE]
        last = next(record for record in reversed(records) if record.kind == Kind.SPEED)
        counts = ", then ".join(str(start["processes"]) for start in hardware)
        notes.append(f"processes {counts}; {hardware[-1]['device_name']}; goodput {last.values['goodput']:.3f}")
    show(titles, columns, notes)


if __name__ == "__main__":
    main()
