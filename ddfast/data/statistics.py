"""Batch-norm statistics for networks whose parameters alone are known."""

import torch
from torch import nn

from ddfast.data.dataset import Dataset
from ddfast.runtime import seeds

BATCH = 256


@torch.no_grad()
def take_statistics(net: nn.Module, dataset: Dataset, device: torch.device, most: int | None = None) -> None:
    """Set the running statistics of batch norm, which snapshots do not hold: their mean over all training images, or
    over `most`, in minibatches of all classes. The network is left in eval mode."""
    net.eval()  # dropout too
    layers = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the minibatches
        layer.train()
    order = torch.randperm(len(dataset.train_images), generator=seeds.generator(0, "statistics"))
    for chosen in order[:most].split(BATCH):
        net(dataset.preprocessing.apply(dataset.train_images[chosen].to(device)))
    net.eval()
