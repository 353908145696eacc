"""The networks that are distilled for and evaluated on, by name or as objects."""

from ddfast.networks.classic import alexcifarnet, alexnet, lenet, mlp, smallvgg, vgg11
from ddfast.networks.convnet import Conv3x3, ConvNet, NormReLUPool
from ddfast.networks.registry import NETWORKS, create, name_of, register_network, structure_of
from ddfast.networks.resnet import resnet18, resnet18_ap

__all__ = [
    "NETWORKS",
    "Conv3x3",
    "ConvNet",
    "NormReLUPool",
    "alexcifarnet",
    "alexnet",
    "create",
    "lenet",
    "mlp",
    "name_of",
    "register_network",
    "resnet18",
    "resnet18_ap",
    "smallvgg",
    "structure_of",
    "vgg11",
]
