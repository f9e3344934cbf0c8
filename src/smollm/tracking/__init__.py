"""What people see of a run: MLflow, the terminal, comparison tables. The only package that imports mlflow.

An observer: nothing here may change an output, so no stage depends on it in dvc.yaml. MLflow is fed from the journal
and never waited for: a `Delivery` records how much MLflow has acknowledged and sends the rest; while MLflow does not
answer, training goes on and the rest is sent later, by the same stage, the next one, or `make sync`.
"""
