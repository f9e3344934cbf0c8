"""Train a small Llama from scratch, reproducibly: the library behind the pipeline's stages."""
