"""Operating the pipeline: pre-flight checks, starting processes, presets, tidying up, finding a model by name.

An observer: it refuses or starts a stage but does not change what the stage computes, so no stage depends on it in
dvc.yaml.
"""
