"""Which device to use, and what its errors mean."""

import torch

from deployments.faults import DeviceLost, Fault, OutOfMemory

#: Allocators of the libraries below torch do not raise ``torch.OutOfMemoryError``.
_OUT_OF_MEMORY = (
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't allocate memory",
)
_DEVICE_LOST = ("cuda error", "cublas_status_", "cudnn_status_", "cuda driver error", "nvml")


def device() -> torch.device:
    """The first CUDA device, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fault_of(error: BaseException) -> Fault | None:
    """The fault that ``error`` stands for, or None if it is not the device's doing.

    Memory is looked at first: an allocation that failed leaves the CUDA context usable.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return OutOfMemory(_first_line(error))
    if not isinstance(error, RuntimeError):
        return None
    text = str(error).lower()
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return OutOfMemory(_first_line(error))
    # Asynchronous errors surface at any later call and every call after it fails as well.
    if isinstance(error, torch.AcceleratorError) or any(sign in text for sign in _DEVICE_LOST):
        return DeviceLost(_first_line(error))
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0].strip() or type(error).__name__
