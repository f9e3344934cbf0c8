"""Operating the pipeline: pre-flight checks, starting processes, presets, tidying up.

An observer: it refuses or starts a stage and changes nothing that the stage computes, so no stage depends on it in
dvc.yaml.
"""
