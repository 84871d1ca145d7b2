"""Set before anything imports torch or Triton: threads, and where kernels run."""

import os

if num_workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    share = (os.cpu_count() or 1) // int(num_workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import torch

if not torch.cuda.is_available():  # without a GPU Triton's kernels run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
