"""Sharing a trained model: its model card, publishing it to the Hugging Face hub, and GGUF for llama.cpp."""
