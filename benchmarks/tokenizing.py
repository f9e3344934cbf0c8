"""Tokenize a corpus of any size, and see how fast and in how much memory: `python3 benchmarks/tokenizing.py`.

    PYTHONPATH=src python3 benchmarks/tokenizing.py [--gigabytes 1] [--kind jsonl|txt|parquet] [--workspace DIR]

The corpus is made of the Python files of this environment, over and over with their lines in another order, so that
no document is another's near-duplicate: as rows of JSON lines or Parquet, or one after the other in a single text
file. What is timed is the pipeline's own way from files to token files. Before and after it the bare tokenizer
encodes 20 MB of the same documents, which are in memory already, three times; the ratio is between the two rates.
Peak memory is the resident memory of the process that tokenizes, with those 20 MB, and its children; the corpus
and the tokenizer are made in another process.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import random
import statistics
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
from tokenizers import Tokenizer

from smollm.config.corpus import CorpusConfig, CorpusSource, HubDatasetConfig, SourceConfig
from smollm.corpus import tokenizer
from smollm.corpus.encode import Encoder
from smollm.corpus.selection import Splitter
from smollm.corpus.source import Source

END = "<|endoftext|>"
ROWS_A_FILE = 20_000


def documents(size: float) -> list[str]:
    """Source files of this environment, about `size` characters."""
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if text.strip():
            texts.append(text)
            size -= len(text)
        if size < 0:
            break
    return texts


def texts(sources: list[str], size: float) -> Iterator[str]:
    written = 0
    for number in itertools.count():
        lines = sources[number % len(sources)].splitlines(keepends=True)
        if number >= len(sources):
            random.Random(number).shuffle(lines)
        text = f"# copy {number // len(sources)} of file {number % len(sources)}\n{''.join(lines)}"
        written += len(text.encode())
        if written > size:
            return
        yield text


def make(workspace: Path, kind: str, size: float) -> None:
    """Write the corpus and a tokenizer for it."""
    sources = documents(60e6)
    tokenizer.train(sources, 49_152, END).save(str(workspace / "tokenizer.json"))
    directory = workspace / "data" / "raw"
    directory.mkdir(parents=True)
    waiting = texts(sources, size)
    if kind == "txt":
        with (directory / "all.txt").open("w") as file:
            file.writelines(f"{text}\n\n" for text in waiting)
        return
    for shard in itertools.count():
        rows = list(itertools.islice(waiting, ROWS_A_FILE))
        if not rows:
            return
        path = directory / f"{shard:05}.{kind}"
        if kind == "parquet":
            pd.DataFrame({"text": rows}).to_parquet(path, row_group_size=1000)
        else:
            with path.open("w") as file:
                file.writelines(json.dumps({"text": row}) + "\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--kind", choices=("jsonl", "txt", "parquet"), default="jsonl")
    parser.add_argument("--workspace", type=Path, help="where the corpus and the token files go; a temporary folder")
    parser.add_argument("--near-duplicate-similarity", type=float, help="look for near-duplicates")
    arguments = parser.parse_args()
    sources = documents(20e6)
    size = 1e9 * arguments.gigabytes
    with tempfile.TemporaryDirectory(dir=arguments.workspace) as directory:
        workspace = Path(directory)
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(workspace, arguments.kind, size))
        maker.start()
        maker.join()
        bpe = tokenizer.load(workspace / "tokenizer.json", END)
        print(f"corpus of {arguments.gigabytes:g} GB ({arguments.kind}) and tokenizer written", flush=True)
        source_config = SourceConfig(CorpusSource.FILES, (f"data/raw/*.{arguments.kind}",), "text", None, _NO_HUB)
        similarity = arguments.near_duplicate_similarity
        corpus = CorpusConfig(("stdlib",), 1e9, None, 0.02, 0.05, similarity, source_config, source_config)
        bare = [plain_rate(bpe, sources) for _ in range(3)]
        memory = Memory()
        began = mark = time.perf_counter()
        done, shown = 0, 0.0

        def progress(count: int) -> None:
            nonlocal done, shown, mark
            done += count
            if done - shown > size / 10:  # ten looks on the way
                now = time.perf_counter()
                rate = (done - shown) / (now - mark) / 1e6
                print(f"{done / 1e9:.2f} GB: {rate:.2f} MB/s, peak {memory.peak:.0f} MB", flush=True)
                shown, mark = done, now

        source = Source("pretrain", corpus, workspace)
        manifest = Encoder(bpe, END, corpus, Splitter(0.02)).write(workspace / "tokens", source, progress)
        seconds = time.perf_counter() - began
        bare += [plain_rate(bpe, sources) for _ in range(3)]
    tokens = manifest["train"]["tokens"] + manifest["validation"]["tokens"]
    rate, plain = done / seconds / 1e6, statistics.median(bare)
    print(
        f"{done / 1e9:.2f} GB, {tokens / 1e6:,.0f} M tokens in {seconds:.0f} s: {rate:.2f} MB/s, {rate / plain:.0%} of "
        f"the bare tokenizer's {plain:.2f}; peak memory {memory.peak:.0f} MB"
    )


_NO_HUB = HubDatasetConfig(None, None, "train", None, True)


def plain_rate(bpe: Tokenizer, sources: list[str]) -> float:
    """MB/s of `encode_batch_fast` on documents in memory, a million characters at a time."""
    batches: list[list[str]] = [[]]
    for text in sources:
        if sum(map(len, batches[-1])) > 1e6:
            batches.append([])
        batches[-1].append(text)
    size = sum(len(text.encode()) for batch in batches for text in batch)
    began = time.perf_counter()
    for batch in batches:
        bpe.encode_batch_fast(batch, add_special_tokens=False)
    return size / (time.perf_counter() - began) / 1e6


class Memory(threading.Thread):
    """The resident memory of this process and its children, looked at twice a second; shared pages count once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self.start()

    def run(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in (me, *me.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.peak = max(self.peak, total / 1e6)
            time.sleep(0.5)


if __name__ == "__main__":
    main()
