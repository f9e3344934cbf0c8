"""Deletes for good the runs that were deleted in MLflow: ``python3 -m smollm.tracking.prune`` (`make prune`).

MLflow's own `mlflow gc` deletes such a run and its files, but leaves its versions in the registry and its entries on
the Models page, which then lead nowhere; and in a copy of the repository it could delete the original's files.
"""

from pathlib import Path

from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.registry import name_best


def prune(store: MlflowStore) -> int:
    """Delete the deleted runs of the repository's own store, with all that leads to them; return how many there were.

    Raises:
        Exception: what MLflow raises; the rest can be deleted later.
    """
    import mlflow
    from mlflow.cli import gc
    from mlflow.entities import ViewType

    client = store.client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments(ViewType.ALL)]
    runs = mlflow.search_runs(experiments, run_view_type=ViewType.ALL, output_format="list")
    there = {run.info.run_id for run in runs if run.info.lifecycle_stage == "active"}
    for model in mlflow.search_logged_models(experiments, output_format="list"):
        if model.source_run_id and model.source_run_id not in there:
            client.delete_logged_model(model.model_id)
    for version in mlflow.search_model_versions():
        if version.run_id and version.run_id not in there:
            client.delete_model_version(version.name, version.version)
            name_best(client, version.name)
    gc.main(["--backend-store-uri", store.uri, "--tracking-uri", store.uri], standalone_mode=False)
    return len(runs) - len(there)


def main() -> None:
    """Prune the store of the repository in the working directory, and print how many runs are gone."""
    store = MlflowStore.of(Path.cwd())
    if not store.is_own:
        raise SystemExit(
            f"ERROR: make prune must have the repository's own store, got {store.shown}; use `mlflow gc` on its machine"
        )
    try:
        count = prune(store)
    except Exception as error:  # whatever a store raises
        raise SystemExit(store.outage(error)) from None
    print(f"runs deleted for good from {store.shown}: {count}")


if __name__ == "__main__":
    main()
