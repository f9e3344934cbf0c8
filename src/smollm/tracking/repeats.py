"""Runs that differ in their seed alone, as mean and standard deviation."""

import pandas as pd

_SEED = "params.seed"
_HOW = "params.runtime."
"""Prefix of the settings that say how a run was computed, not what."""

_TOKENS = "tags.dvc.dep.data/"
"""Prefix of DVC's digests of tokenizer and tokens."""

_UNKNOWN = "params.pretrain"
"""The digest of a checkpoint whose run is not known."""

MEASURES = {
    "metrics.validation/best_bits_per_byte": "best_bits_per_byte",
    "metrics.validation/bits_per_byte": "bits_per_byte",
    "metrics.train/loss": "train_loss",
}


def repeats(runs: pd.DataFrame, stage: str | None = None) -> pd.DataFrame:
    """One row for each group of finished runs, of a stage and its tokens, whose params are the same but for the seed.

    The deviation is that of a sample (n - 1). Of several runs with one seed the newest counts.

    Args:
        runs: what `mlflow.search_runs` gives.
        stage: only groups of this stage; None for all.

    Returns:
        Columns `stage`, what differs between the groups, `seeds` (how many), and for each of `MEASURES` the mean and,
        as `..._deviation`, the standard deviation. Groups of one seed are left out. The best mean comes first.
    """
    if _SEED not in runs or "tags.stage" not in runs:
        return pd.DataFrame()
    runs = _with_params_of_pretrain(runs)
    settings = [name for name in runs.columns if name.startswith("params.") and not name.startswith(_HOW)]
    same = ["tags.stage", *(name for name in runs.columns if name.startswith(_TOKENS)), *settings]
    measures = list(MEASURES)
    are_measured = runs.reindex(columns=measures).notna().all(axis=1)
    are_meant = runs["tags.stage"].notna() if stage is None else runs["tags.stage"] == stage
    finished = runs.loc[are_measured & are_meant & (runs["status"] == "FINISHED")]
    newest = finished.sort_values("start_time").drop_duplicates(same, keep="last")
    same.remove(_SEED)
    grouped = newest.groupby(same, dropna=False, sort=False)
    sizes, means, deviations = grouped.size(), grouped[measures].mean(), grouped[measures].std()
    rows = sizes[sizes > 1].rename("seeds").reset_index()
    named = pd.DataFrame({"stage": rows["tags.stage"]})
    for name in same[1:]:
        if any(part[name].nunique(dropna=False) > 1 for _, part in rows.groupby("tags.stage")):
            named[name.removeprefix("params.").removeprefix("tags.dvc.dep.")] = rows[name]
    named["seeds"] = rows["seeds"]
    for metric, name in MEASURES.items():
        named[name] = means.loc[sizes > 1, metric].to_numpy()
        named[f"{name}_deviation"] = deviations.loc[sizes > 1, metric].to_numpy()
    return named.sort_values("best_bits_per_byte").reset_index(drop=True)


def _with_params_of_pretrain(runs: pd.DataFrame) -> pd.DataFrame:
    """Give each run of finetune the settings of the pretrain run whose checkpoint it started from.

    Where that run is not there, the checkpoint's digest stands for its settings, which keeps other runs apart.
    """
    made, used = (f"tags.dvc.{way}.checkpoints/pretrain" for way in ("out", "dep"))
    if made not in runs or used not in runs:
        return runs
    settings = [name for name in runs.columns if name.startswith("params.pretrain.")]
    known = runs.dropna(subset=[made]).drop_duplicates(made).set_index(made)[settings]
    digests = runs[used].dropna()
    runs = runs.assign(**{_UNKNOWN: digests.where(~digests.isin(known.index))})
    runs.loc[digests.index, settings] = known.reindex(digests).to_numpy()
    return runs


def text(table: pd.DataFrame) -> str:
    """The table for a terminal, each mean with its deviation: ``1.392 ± 0.004``."""
    shown = table.copy()
    for name in MEASURES.values():
        pairs = zip(table[name], table[f"{name}_deviation"], strict=True)
        shown[name] = [f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in pairs]
        del shown[f"{name}_deviation"]
    return str(shown.to_string(index=False))
