"""The stage `tokenize`, from params to published outputs."""

import json
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
from smollm.corpus.encode import Encoder
from smollm.corpus.selection import Splitter, training_texts
from smollm.corpus.source import Source
from smollm.corpus.tokenizer import load as load_tokenizer
from smollm.corpus.tokenizer import obtain as obtain_tokenizer
from smollm.operate.preflight import check_vocabulary
from smollm.stage import report
from smollm.stage.run import StageRun, run_stage
from smollm.state import tokens
from smollm.state.files import replace_directory, write_atomically, write_json
from smollm.state.journal import Kind
from smollm.state.workspace import Workspace
from smollm.tracking import announce, summary
from smollm.tracking.console import ProgressBar, say
from smollm.tracking.observer import RunInputs


@dataclass(frozen=True)
class TokenizeStage:
    """The stage with all settings that it reads."""

    workspace: Workspace
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    tracking: TrackingConfig

    def run(self) -> None:
        """Read the text, train or load the tokenizer, and write the token files; after a kill, continue them.

        Raises:
            PipelineError: with a line for the user.
        """
        run_stage("tokenize", self.workspace, self.tracking, self._inputs, self._work, self._publish)

    def _work(self, run: StageRun) -> None:
        sources = {stage: Source(stage, self.corpus, self.workspace.directory) for stage in tokens.STAGES}
        self._drop_outdated(run, sources)
        kinds = {stage: source.config.source.value for stage, source in sources.items()}
        run.log(announce.corpus_plan(kinds, self.corpus.max_megabytes))
        tokenizer = self._tokenizer(run, sources["pretrain"], tokens.tokenizer_path(run.state.directory))
        encoder = Encoder(tokenizer, self.tokenizer.end_of_text, self.corpus, Splitter(self.corpus.validation_fraction))
        # without a prefix, MLflow shows them below the charts of training
        results: dict[str, float] = {"corpus_vocab_size": tokens.vocabulary_size(tokenizer)}
        for stage, source in sources.items():
            results |= self._encode(run, encoder, source, tokens.token_directory(run.state.directory, stage))
        run.state.journal.append(Kind.RESULT, 0, **results)

    def _drop_outdated(self, run: StageRun, sources: dict[str, Source]) -> None:
        """Start over if packages were upgraded since the start that was killed: DVC does not watch them."""
        record = run.state.directory / "sources.json"
        versions = {stage: source.installed_versions() for stage, source in sources.items()}
        if not record.exists() or json.loads(record.read_text(encoding="utf-8")) != versions:
            shutil.rmtree(run.state.directory / "data", ignore_errors=True)
            write_json(record, versions)

    def _tokenizer(self, run: StageRun, source: Source, path: Path) -> Tokenizer:
        """The tokenizer that an earlier start saved at `path`, else a new one, which is saved there."""
        began = time.monotonic()
        if path.exists():
            tokenizer = load_tokenizer(path, self.tokenizer.end_of_text)
        else:
            texts = training_texts(source, self.corpus, self.tokenizer.train_megabytes)
            tokenizer = obtain_tokenizer(self.tokenizer, texts, self.workspace.directory)
            write_atomically(path, tokenizer.to_str(pretty=True))
        vocab_size = tokens.vocabulary_size(tokenizer)
        # `model` is not among the params of this stage in dvc.yaml: it changes no output. It is read only to refuse too
        # small a vocabulary before hours of encoding; pretrain, which depends on `model`, checks again.
        check_vocabulary(vocab_size, load(self.workspace.directory / "params.yaml").model)
        run.log(announce.tokenizer_ready(vocab_size, self.tokenizer.source.value, time.monotonic() - began))
        return tokenizer

    def _encode(self, run: StageRun, encoder: Encoder, source: Source, directory: Path) -> dict[str, float]:
        """Write the token files of one stage's text, and return their metrics for MLflow."""
        began, stage = time.monotonic(), source.stage
        encoded_bytes = 0
        progress = ProgressBar(f"tokenize {stage}", None, unit="B")

        def on_progress(text_bytes: int) -> None:
            nonlocal encoded_bytes
            run.check_stop()
            encoded_bytes += text_bytes
            progress.update(text_bytes)

        def on_resume(documents: int, text_bytes: int) -> None:
            run.log(announce.text_resumed(stage, documents, text_bytes))

        try:
            if tokens.manifest_path(directory).exists():
                manifest = encoder.reread(directory, source)
            else:
                manifest = encoder.write(directory, source, on_progress, on_resume)
        finally:
            progress.close()
        seconds = time.monotonic() - began
        counts = [manifest[split] for split in tokens.SPLITS]
        size, documents = sum(count["bytes"] for count in counts), manifest["documents"]
        (trained_on, held_out), bytes_per_token = (count["tokens"] for count in counts), counts[0]["bytes_per_token"]
        how_split = manifest["split"]
        run.log(announce.tokens_written(stage, documents, size, trained_on, held_out, how_split, bytes_per_token))
        near_duplicates = manifest["near_duplicates"] or {}
        if near_duplicates:
            run.log(announce.near_duplicates(stage, near_duplicates))
        return {
            f"corpus_{stage}_documents": documents,
            f"corpus_{stage}_near_duplicates": near_duplicates.get("removed", 0),
            f"corpus_{stage}_megabytes": size / 1e6,
            f"corpus_{stage}_train_tokens": trained_on,
            f"corpus_{stage}_validation_tokens": held_out,
            f"corpus_{stage}_bytes_per_token": bytes_per_token,
            f"corpus_{stage}_megabytes_per_second": encoded_bytes / 1e6 / seconds,
        }

    def _publish(self, run: StageRun) -> None:
        from smollm.corpus import describe  # imports pandas, which is slow and needed only here

        live, target = run.state.directory, self.workspace.directory
        replace_directory(tokens.tokenizer_path(live).parent, tokens.tokenizer_path(target).parent)
        directories = {stage: tokens.token_directory(target, stage) for stage in tokens.STAGES}
        metrics: dict[str, Any] = {}
        for stage, directory in directories.items():
            replace_directory(tokens.token_directory(live, stage), directory)
            manifest = tokens.read_manifest(directory)
            metrics |= {
                "vocab_size": manifest["vocab_size"],
                stage: {
                    **{
                        split: {key: value for key, value in manifest[split].items() if key != "sha256"}
                        for split in tokens.SPLITS
                    },
                    "near_duplicates": manifest["near_duplicates"] or {},
                },
            }
            run.artifacts[f"{stage}_manifest.json"] = tokens.manifest_path(directory)
        write_json(run.reports / "metrics.json", metrics)
        report.write_log(run.reports / "log.txt", run.state.journal.records())
        write_atomically(run.reports / "corpus.txt", describe.describe(target))
        describe.draw_lengths(run.reports / "lengths.svg", directories)
        names = ("metrics.json", "log.txt", "corpus.txt", "lengths.svg")
        run.artifacts |= {name: run.reports / name for name in names}
        say(summary.TOKENIZE)

    def _inputs(self, run: StageRun) -> RunInputs:
        return RunInputs({"corpus": self.corpus, "tokenizer": self.tokenizer})
