"""The stage `tokenize` from params to published outputs."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from smollm.config.corpus import CorpusConfig
from smollm.config.file import load
from smollm.config.tokenizer import TokenizerConfig
from smollm.config.tracking import TrackingConfig
from smollm.corpus import describe, encode, tokenizer
from smollm.corpus.describe import STAGES
from smollm.corpus.selection import Split, training_texts
from smollm.corpus.source import Source
from smollm.operate.preflight import check_vocabulary
from smollm.stage import report
from smollm.stage import run as pipeline
from smollm.stage.run import StageRun
from smollm.state import tokens
from smollm.state.files import replace_directory, write_atomically, write_json
from smollm.state.workspace import Workspace
from smollm.tracking import announce, summary
from smollm.tracking.console import Progress, say
from smollm.tracking.observer import RunInputs


@dataclass(frozen=True)
class TokenizeStage:
    """All that the stage reads of the params."""

    workspace: Workspace
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    tracking: TrackingConfig

    def run(self) -> None:
        """Read the text, train or load the tokenizer, write the token files.

        Raises:
            PipelineError: with a line for the user.
        """
        pipeline.run_stage("tokenize", self.workspace, self.tracking, self._inputs, self._work, self._publish)

    def _work(self, run: StageRun) -> None:
        data = run.state.directory / "data"
        shutil.rmtree(data, ignore_errors=True)  # of an attempt that was killed
        sources = {stage: Source(stage, self.corpus, self.workspace.directory) for stage in STAGES}
        kinds = {stage: source.config.source.value for stage, source in sources.items()}
        run.log(announce.corpus_plan(kinds, self.corpus.max_megabytes))
        began = time.monotonic()
        texts = training_texts(sources["pretrain"], self.corpus, self.tokenizer.train_megabytes)
        made = tokenizer.obtain(self.tokenizer, texts, self.workspace.directory)
        check_vocabulary(tokens.vocabulary_size(made), load(self.workspace.directory / "params.yaml").model)
        write_atomically(data / "tokenizer" / "tokenizer.json", made.to_str(pretty=True))
        vocab_size = tokens.vocabulary_size(made)
        run.log(announce.tokenizer_ready(vocab_size, self.tokenizer.source.value, time.monotonic() - began))
        # without a prefix, MLflow shows them below the charts of training
        results: dict[str, float] = {"corpus_vocab_size": vocab_size}
        split = Split(self.corpus.validation_fraction)
        for stage, source in sources.items():
            results |= self._encode(run, source, made, split, data / "tokens" / stage)
        run.state.journal.append("result", 0, **results)

    def _encode(
        self, run: StageRun, source: Source, made: Tokenizer, split: Split, directory: Path
    ) -> dict[str, float]:
        """Write the token files of one stage's text; what MLflow is told of them."""
        began, stage = time.monotonic(), source.stage
        progress = Progress(f"tokenize {stage}", None, unit="B")
        try:
            manifest = encode.write(
                directory, source, made, self.tokenizer.end_of_text, self.corpus, split, progress.update
            )
        finally:
            progress.close()
        seconds = time.monotonic() - began
        sides = [manifest[side] for side in (tokens.TRAIN, tokens.VALIDATION)]
        size = sum(side["bytes"] for side in sides)
        documents = sum(side["documents"] for side in sides)
        run.log(
            announce.tokens_written(
                stage,
                documents,
                size,
                sides[0]["tokens"],
                sides[1]["tokens"],
                manifest["split"],
                sides[0]["bytes_per_token"],
            )
        )
        return {
            f"corpus_{stage}_documents": documents,
            f"corpus_{stage}_megabytes": size / 1e6,
            f"corpus_{stage}_train_tokens": sides[0]["tokens"],
            f"corpus_{stage}_validation_tokens": sides[1]["tokens"],
            f"corpus_{stage}_bytes_per_token": sides[0]["bytes_per_token"],
            f"corpus_{stage}_megabytes_per_second": size / 1e6 / seconds,
        }

    def _publish(self, run: StageRun) -> None:
        made, target = run.state.directory / "data", self.workspace.directory / "data"
        replace_directory(made / "tokenizer", target / "tokenizer")
        metrics: dict[str, Any] = {}
        for stage in STAGES:
            replace_directory(made / "tokens" / stage, target / "tokens" / stage)
            manifest = tokens.read_manifest(target / "tokens" / stage)
            metrics |= {
                "vocab_size": manifest["vocab_size"],
                stage: {
                    side: {key: value for key, value in manifest[side].items() if key != "sha256"}
                    for side in (tokens.TRAIN, tokens.VALIDATION)
                },
            }
            run.artifacts[f"{stage}_manifest.json"] = target / "tokens" / stage / "manifest.json"
        write_json(run.reports / "metrics.json", metrics)
        report.write_log(run.reports / "log.txt", run.state.journal.records())
        write_atomically(run.reports / "corpus.txt", describe.describe(target))
        describe.draw_lengths(run.reports / "lengths.svg", {stage: target / "tokens" / stage for stage in STAGES})
        names = ("metrics.json", "log.txt", "corpus.txt", "lengths.svg")
        run.artifacts |= {name: run.reports / name for name in names}
        say(summary.TOKENIZE)

    def _inputs(self, run: StageRun) -> RunInputs:
        return RunInputs({"corpus": self.corpus, "tokenizer": self.tokenizer})
