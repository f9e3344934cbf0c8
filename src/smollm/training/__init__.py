"""Stages `pretrain` and `finetune`: batches, schedule, optimizers, the loop, validation, checkpoints.

Imported by `stages/pretrain.py` and `stages/finetune.py`; never imports `corpus`.
"""
