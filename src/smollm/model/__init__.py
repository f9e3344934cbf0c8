"""The Llama in one file (`llama`), its faster kernels, sharding, sampling, export, and counts of parameters and
FLOPs."""
