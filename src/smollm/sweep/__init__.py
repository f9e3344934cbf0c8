"""Studies: Optuna proposes settings, DVC runs each proposal as an experiment, MLflow records all below one run.

`make sweep STUDY=sweeps/learning-rate.yaml` reads the study with `study_file`; `runner` is the loop. `search` is
Optuna's part and the only importer of `optuna`, `experiment` is one `dvc exp run --temp`, `table` what is printed.
"""
