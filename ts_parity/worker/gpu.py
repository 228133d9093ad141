"""The GPU that TorchServe assigns to a worker, and what its failures mean while others share it.

Out of memory is the failure of that one run. What the run held is let go, and what torch keeps for later goes back to
the device, where the deployed model's worker may need it. After a lost context (an illegal access, a failed assertion
on the device) every later call of the process would fail too, so the process ends and TorchServe starts another. Knows
torch's errors. Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import torch

log = logging.getLogger(__name__)

MPS_PRIORITY = "CUDA_MPS_CLIENT_PRIORITY"
"""NVIDIA's MPS, which lets processes share a GPU at the same instant, reads it when a process first uses the GPU: 0
normal, 1 below. Without MPS it has no effect, and processes take turns. A stream cannot do this: torch's ordinary
streams have CUDA's lowest priority already, and priorities of streams hold within one process."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""In what PyTorch, its CPU allocator, cuBLAS and cuDNN say. The last is cuBLAS without room for its workspace."""


def assigned_device(context: Any) -> torch.device:
    gpu = context.system_properties.get("gpu_id")
    return torch.device(f"cuda:{gpu}") if gpu is not None and torch.cuda.is_available() else torch.device("cpu")


def yield_to_others() -> None:
    """Ask MPS for the lower priority, unless the operator has set one. Only before the process uses a GPU."""
    os.environ.setdefault(MPS_PRIORITY, "1")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


@contextlib.contextmanager
def shared_gpu() -> Iterator[None]:
    """Around user code and networks: see the module. The error passes through."""
    try:
        yield
    except Exception as error:
        recover(error)
        raise


def recover(error: BaseException) -> None:
    """After a failed run: give memory back, or end this process if the GPU is lost to it."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    if is_out_of_memory(error):
        traceback.clear_frames(error.__traceback__)  # the failed code's variables hold tensors
        torch.cuda.empty_cache()
    elif "CUDA error" in str(error) and _is_lost():
        _end(error)


def _is_lost() -> bool:
    """After an ordinary error the next call succeeds; a lost context repeats its error for ever."""
    try:
        for device in range(torch.cuda.device_count()):
            if torch.cuda.memory_allocated(device):
                torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _end(error: BaseException) -> NoReturn:
    log.error("this process has lost its GPU and ends, so that TorchServe starts another: %s", error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # an orderly exit would run CUDA's own clean-up, which may hang now
