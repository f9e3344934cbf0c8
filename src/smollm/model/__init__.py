"""The Llama: one file to read, and how it runs faster, sharded, sampled and exported. Imported by `training` and by
tools that need a model."""
