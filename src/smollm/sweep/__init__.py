"""Studies: Optuna chooses settings, DVC runs each choice as an experiment, MLflow has all of them below one run.

`make sweep STUDY=sweeps/learning-rate.yaml` reads the study with `study_file`; `runner` is the loop. `search` is
Optuna's part and the only importer of `optuna`, `experiment` is one `dvc exp run --temp`, `table` what is printed.
"""
