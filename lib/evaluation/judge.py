"""All networks look at the same images: each latent is synthesised once, however many judges there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.errors import UserError
from lib.runtime import frozen


def judge(
    inputs: Tensor,
    networks: Mapping[str, nn.Module],
    *,
    synthesise: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 64,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Features and logits of every network on the same images.

    Images are clamped to [0, 1], as saved images would be, and resized with antialiasing for networks of
    another ``image_size``. Networks are classifiers with ``both(x) -> (features, logits)``.

    Args:
        inputs: latents (N, d) if ``synthesise`` is given (any float type; passed on as fp32), else images
            (N, 3, S, S), float in [0, 1] or uint8. They are moved to the networks' device.
        synthesise: latents -> images in [0, 1] on the networks' device.

    Returns:
        name -> (features (N, f), logits (N, C)), fp32 on the CPU.

    Raises:
        UserError: if there are no inputs or networks, the inputs are no images, or networks lie on
            different devices.
    """
    if len(inputs) == 0 or not networks:
        raise UserError(
            f"judge: expected inputs and networks, got {len(inputs)} and {len(networks)}; pass some"
        )
    if batch_size < 1:
        raise UserError(f"batch size: expected 1 or more, got {batch_size}; raise it")
    if synthesise is None and inputs.ndim != 4:
        raise UserError(
            f"judge: expected images (N, 3, S, S), got {tuple(inputs.shape)}; pass synthesise for latents"
        )
    devices = {parameter.device for network in networks.values() for parameter in network.parameters()}
    if len(devices) > 1:
        raise UserError(f"judge: expected networks on one device, got {sorted(map(str, devices))}; move them")
    where = devices.pop() if devices else inputs.device

    parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in networks}
    with frozen(*networks.values()), torch.inference_mode():
        for batch in inputs.split(batch_size):
            images = _images(batch.to(where), synthesise)
            sizes = {images.shape[-1]: images}
            for name, network in networks.items():
                size = int(network.image_size)
                if size not in sizes:
                    sizes[size] = functional.interpolate(
                        images, size=(size, size), mode="bilinear", antialias=True
                    ).clamp(0, 1)
                features, logits = network.both(sizes[size])
                parts[name].append((features.float().cpu(), logits.float().cpu()))
    # Inference tensors cannot enter autograd later; a copy outside the mode can.
    return {
        name: (torch.cat([part[0] for part in kept]), torch.cat([part[1] for part in kept]))
        for name, kept in parts.items()
    }


def _images(batch: Tensor, synthesise: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Channels last: the layout convolutions are fastest in, and the networks follow their input's."""
    if synthesise is not None:
        images = synthesise(batch.float()).float().clamp(0, 1)
    else:
        images = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float().clamp(0, 1)
    return images.contiguous(memory_format=torch.channels_last)
