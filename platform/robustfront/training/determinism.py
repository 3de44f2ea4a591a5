"""What a process owes to a trial: nothing left over from the trial before."""

import torch

from robustfront.randomness import seed_of


def reset_process(threads: int, seed: int) -> None:
    """Put threads, default dtype, CUDA's precision switches and the global generators in order.

    Worker processes are used for one trial after the other, and these settings outlive a trial.
    Models draw their first weights and their dropout masks from the global generators.
    """
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(seed_of(seed, "init"))
