"""Device, precision, memory, named seed streams and provenance: the few things every room needs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from lib.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def device(name: str | None = None) -> torch.device:
    """The device to compute on: ``name``, else the environment's ``DEVICE``, else the best there is.

    Raises:
        UserError: if the device is unknown or not present.
    """
    wanted = name or os.environ.get("DEVICE") or ""
    _keep_freed_memory()
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not wanted:
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if wanted not in available:
        raise UserError(
            f"DEVICE: expected cpu, cuda or mps, got {wanted!r}; unset it to use the best there is"
        )
    if not available[wanted]:
        raise UserError(f"DEVICE={wanted}: this machine has no such device; use DEVICE=cpu or unset it")
    return torch.device(wanted)


@functools.cache
def _keep_freed_memory() -> None:
    """Tell glibc not to hand large freed blocks back to the system: every batch would fault the same pages in
    again, a tenth of an attack's time on a CPU. Elsewhere (no mallopt) nothing happens."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        for option, bytes_kept in ((-3, 1 << 30), (-1, (1 << 31) - 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(option, bytes_kept)


class Peak:
    """How much memory a piece of work takes at its peak, beyond what was there when it began.

    Watches from when it is made. On a CPU it asks Linux about this process; where the system keeps no peak that can
    be set back (macOS, Windows, Apple's GPUs) nothing is known.

    Args:
        device: whose memory counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before: float | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device) / 1e6
        elif device.type == "cpu":
            with contextlib.suppress(OSError):
                _give_back()
                RESET.write_text("5")  # the peak is what there is now (man 5 proc)
                self._before = _megabytes("VmRSS")

    def megabytes(self) -> float | None:
        """So far; None where nothing is known."""
        if self._before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6 - self._before
        return max(0.0, _megabytes("VmHWM") - self._before)


def _give_back() -> None:
    """Freed blocks that glibc keeps go back to the system: work that used them again would seem to take nothing."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _megabytes(field: str) -> float:
    """Raises: OSError where there is no such file."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


def seed_for(root: int, *names: str | int) -> int:
    """A 63-bit seed for one named stream. Streams of different names are independent, so that
    changing what one of them draws (say, a defence) leaves the others (say, the data order) alone."""
    text = "/".join([str(int(root)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def digest(*tensors: torch.Tensor) -> str:
    """Of the tensors' bytes: runs on different images or networks must not share a checkpoint."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy())
    return found.hexdigest()[:16]


def generator(root: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded with :func:`seed_for`, on the device whose tensors it will fill."""
    return torch.Generator(device=device).manual_seed(seed_for(root, *names))


def supports_bfloat16(where: torch.device) -> bool:
    """Whether bf16 is computed natively (elsewhere autocast would be slower than fp32)."""
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if where.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return capability.startswith("AVX512") and _cpu_flag("avx512_bf16", "amx_bf16")
    return False


def _cpu_flag(*names: str) -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "").split()
    return any(name in flags for name in names)


def autocast(where: torch.device) -> contextlib.AbstractContextManager:
    """bf16 autocast where it is native, a null context elsewhere. Losses are computed outside, in fp32."""
    if supports_bfloat16(where):
        return torch.autocast(where.type, torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def full_precision(where: torch.device) -> Iterator[None]:
    """fp32 as it is: autocast off, products of matrices and convolutions without TF32; restored on exit."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(where.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode without parameter gradients, for networks under attack; restored on exit."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    grads = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        for module in modules:
            module.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, required in grads:
            parameter.requires_grad_(required)


def provenance() -> dict[str, str]:
    """What made a result: recorded beside every stage, never compared."""
    command, revision = ["git", "describe", "--always", "--dirty"], ""
    with contextlib.suppress(OSError):  # there may be no git
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        revision = found.stdout.strip()
    return {"torch": torch.__version__, "device": str(device()), "revision": revision or "unknown"}
