"""The optional stage `evaluate`: how well the finetuned model predicts, what it writes, and what it knows by heart.

Imported by `stages/evaluate.py`.
"""
