"""Stage `tokenize`: sources, documents, tokenizer, token files.

Imported by `stages/tokenize.py` alone; never by `training`.
"""
