import pytest
import torch

from deployments.accelerator import fault_of
from deployments.faults import DeviceLost, OutOfMemory


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), OutOfMemory),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), DeviceLost),
        (RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA"), DeviceLost),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceLost),
    ],
)
def test_device_errors_become_faults(error: Exception, fault: type[Exception]) -> None:
    found = fault_of(error)
    assert type(found) is fault
    assert found.transient
    assert "\n" not in found.message
    assert found.message


@pytest.mark.parametrize("error", [ValueError("CUDA error"), RuntimeError("shapes do not match"), KeyboardInterrupt()])
def test_other_errors_are_not_the_devices(error: BaseException) -> None:
    assert fault_of(error) is None
