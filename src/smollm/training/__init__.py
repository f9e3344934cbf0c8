"""Stages `pretrain` and `finetune`: batches, schedule, optimizers, the loop, validation, checkpoints.

Imported by `stages/training.py`, for `pretrain` and `finetune`; never imports `corpus`.
"""
