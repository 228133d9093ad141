"""Where training runs: devices, precision and processes, by the trainer library's own names.

Knows Lightning Fabric and what users call their devices. Knows nothing of what is trained.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning_fabric import Fabric

from ts_parity.errors import NotCodable, TrainingError
from ts_parity.training import PairSettings, TrainSettings
from ts_parity.training.architectures import CallAdapter
from ts_parity.training.fit import fit
from ts_parity.training.text_network import TextAdapter
from ts_parity.wire import Array


def make_fabric(settings: TrainSettings | PairSettings) -> Fabric:
    """Raise TrainingError for what cannot be used here."""
    device = _device(settings.device)
    if settings.devices > 1 and device.index is not None and settings.device not in (None, "cuda"):
        raise TrainingError(f"--device {settings.device} is one device; with --devices say --device cuda")
    several = settings.devices > 1
    try:
        return Fabric(
            accelerator=device.type,
            devices=settings.devices if several or device.index is None else [device.index],
            strategy="ddp_spawn" if several else "auto",
            precision=settings.precision or _usual_precision(device),  # type: ignore[arg-type]
        )
    except Exception as error:  # whatever the library finds wrong with these words, it says why
        raise TrainingError(f"--devices {settings.devices} --precision {settings.precision}: {error}") from None


def _usual_precision(device: torch.device) -> str:
    """Half precision where the GPU multiplies it in hardware: bfloat16 from Ampere on, float16 on Volta and Turing."""
    if device.type != "cuda":
        return "32-true"
    major, _ = torch.cuda.get_device_capability(device)
    return "bf16-mixed" if major >= 8 else "16-mixed" if major == 7 else "32-true"


def device_told(device: torch.device) -> str:
    """For people who read figures that were measured on it."""
    if device.type != "cuda":
        return str(device)
    return f"{device}, {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


class _Share:
    """What one of several processes is sent to do. Not plain arguments: those, the library would take apart."""

    def __init__(self, model: CallAdapter | TextAdapter, *arguments: Any) -> None:
        self._model = model
        self._arguments = arguments

    def __call__(self, fabric: Fabric) -> dict[str, Array]:
        # Tensors that are sent to a process lie in memory that all of them share; each must learn in its own. On the
        # way back they would lie in memory of a process that has ended by then, so arrays travel.
        weights = fit(fabric, copy.deepcopy(self._model), *self._arguments)
        # The process ends after this, and the library's threads must have ended before, or it aborts now and then.
        fabric.barrier()
        torch.distributed.destroy_process_group()
        return {name: value.numpy() for name, value in weights.items()}


def serving_device(settings: TrainSettings, learning: torch.device) -> torch.device:
    """Where costs are measured. Raise TrainingError for what cannot be used here."""
    return learning if settings.serve_on is None else _device(settings.serve_on, "--serve-on")


def _device(name: str | None, flag: str = "--device") -> torch.device:
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"{flag} {name} cannot be used here: {error}") from None
    return torch.device("cuda:0") if name == "cuda" else device


def launch(fabric: Fabric, model: CallAdapter | TextAdapter, *arguments: Any) -> dict[str, torch.Tensor]:
    """`fit(fabric, model, ...)` here, or in one process for each device."""
    if fabric.strategy.launcher is None:
        return fit(fabric, model, *arguments)
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        raise NotCodable("a TorchScript model cannot be sent to several processes: train it with --devices 1")
    # A progress bar cannot follow into other processes.
    weights = fabric.launch(_Share(model, *arguments[:-1]))
    return {name: torch.from_numpy(array) for name, array in weights.items()}
