"""Preprocessed minibatches of a real data set, on a device."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddfast.data.preprocessing import Preprocessing
from ddfast.runtime.devices import free_bytes

CHUNK = 1024  # images preprocessed at a time


class Batches:
    """Images by index, preprocessed on `device`.

    They are kept there as they are (uint8, or float), whitened ones as float; where that would take more than half of
    what the device has free, they stay where they are and stream, batch by batch.
    """

    def __init__(
        self,
        images: Tensor,  # [N, C, H, W], uint8 or float in [0, 1], on the CPU
        labels: Tensor,  # int64 [N]
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        self.device, self._apply = device, preprocessing.apply
        room = free_bytes(device) // 2
        if preprocessing.zca is not None and 4 * images.numel() <= room:
            self._apply = None
            whitened = images.new_empty(images.shape, dtype=torch.float32, device=device)
            for chunk, part in zip(whitened.split(CHUNK), images.split(CHUNK), strict=True):
                chunk.copy_(preprocessing.apply(part.to(device)))
            images = whitened
        elif images.numel() * images.element_size() <= room:
            images = images.to(device)
        self._images, self._labels = images, labels.to(device)

    def __len__(self) -> int:
        return len(self._images)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:  # int64 [B] -> float32 [B, C, H, W], int64 [B]
        """The images and labels of these indices."""
        images = self._images[indices.to(self._images.device)].to(self.device, non_blocking=True)
        labels = self._labels[indices.to(self.device)]
        return images if self._apply is None else self._apply(images), labels

    def shuffled(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in an order drawn from `generator`; the last minibatch may be shorter."""
        for indices in torch.randperm(len(self), generator=generator).split(batch):
            yield self.take(indices)

    def in_order(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, as they come."""
        for indices in torch.arange(len(self)).split(batch):
            yield self.take(indices)
