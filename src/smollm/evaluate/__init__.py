"""The optional stage `evaluate`: how well the finetuned model predicts, what it writes, and what it memorised.

Imported by `stages/evaluate.py`.
"""
