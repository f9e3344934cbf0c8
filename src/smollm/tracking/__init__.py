"""What people see of a run: MLflow, the terminal, comparison tables. The only package that imports mlflow.

An observer: nothing here may change an output, so no stage depends on it in dvc.yaml.

- Messages: `announce` and `summary` build them, `console` prints them.
- MLflow: `observer` describes a stage's run, `tracker` sends it from a thread while the stage runs. A
  `delivery` is the run's folder with what MLflow has acknowledged; `upload` sends the rest; while MLflow does not
  answer, training continues, and what is missing waits in the `outbox` for the next stage or `make sync`.
- Commands: `compare` (`make compare`) and `ui` (`make ui`).
"""
