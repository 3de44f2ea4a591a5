"""Freed memory stays in a process that trains."""

import ctypes
import resource

import pytest
import torch

from robustfront.training.determinism import keep_memory


def test_freed_tensors_cost_no_page_faults() -> None:
    """A block of 30 MB is 7,500 pages, which the system would give anew each of 20 times."""
    if getattr(ctypes.CDLL(None), "mallopt", None) is None:
        pytest.skip("no glibc, whose allocator this is about")
    keep_memory()
    torch.ones(8_000_000).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(8_000_000).sum()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 3 * 7500
