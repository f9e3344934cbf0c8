"""The part of the machine that each concurrent trial gets."""

import os


def shares(jobs: int, gpus: list[str], cores: int) -> list[dict[str, str]]:
    """Environment variables for each of `jobs` trials at a time.

    Args:
        jobs: trials at a time.
        gpus: as CUDA_VISIBLE_DEVICES names them; divided, or shared where there are fewer than `jobs`.
        cores: of the processor, divided where there is no GPU: with more threads than cores, trainings wait for each
            other.
    """
    if jobs == 1:
        return [{}]
    if not gpus:
        return [{"OMP_NUM_THREADS": str(max(1, cores // jobs))} for _ in range(jobs)]
    count = max(jobs, len(gpus))
    parts = [
        [gpus[i % len(gpus)] for i in range(job * count // jobs, (job + 1) * count // jobs)] for job in range(jobs)
    ]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that a stage would use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
