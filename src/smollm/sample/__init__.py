"""Trying a trained model: `make sample` continues a prompt, by the code that writes a stage's samples."""
