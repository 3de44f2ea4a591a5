"""What a process owes to a trial: nothing left over from the trial before."""

import ctypes

import torch

from robustfront.randomness import seed_of


def reset_process(threads: int, seed: int) -> None:
    """Put threads, default dtype, CUDA's precision switches and the global generators in order.

    Worker processes are used for one trial after the other, and these settings outlive a trial.
    Models draw their first weights and their dropout masks from the global generators.
    """
    keep_memory()
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(seed_of(seed, "init"))


def keep_memory() -> None:
    """Keep freed memory in the process, where the C library is glibc.

    It gives tensors back to the system when they are freed, and gets their pages again one by one
    in the next step: a tenth of a step of training on a CPU.
    """
    # Options 4 and 1 are M_MMAP_MAX (no block outside the heap) and M_TRIM_THRESHOLD (never).
    if allocator := getattr(ctypes.CDLL(None), "mallopt", None):
        allocator(-4, 0)
        allocator(-1, -1)
