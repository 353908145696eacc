"""The ops: each a plain-PyTorch reference, the specification, with compiled kernels behind the same name."""

from ddfast.ops._adam import AdamSettings, adam_reverse, adam_step
from ddfast.ops._checks import expect_shape, expect_tensors
from ddfast.ops._extension import EXTENSION, release_memory
from ddfast.ops._layout import channels_last
from ddfast.ops._library import has_kernel, op_names, reference_mode
from ddfast.ops._precision import PRECISIONS, computing_in, expect_precision
from ddfast.ops._scatter import add_rows
from ddfast.ops.conv3x3 import conv3x3, conv3x3_is_faster
from ddfast.ops.convnet import ConvNetLayout, convnet_forward, convnet_grad, convnet_grad_jvp, first_block_parts
from ddfast.ops.convnet_features import convnet_features
from ddfast.ops.dsa_augment import dsa_augment
from ddfast.ops.gradient_distance import gradient_distance
from ddfast.ops.norm_relu_pool import norm_relu_pool
from ddfast.ops.param_distance import param_distance
from ddfast.ops.unroll import Steps, unroll
from ddfast.ops.unroll_adam import AdamSteps, unroll_adam

__all__ = [
    "EXTENSION",
    "PRECISIONS",
    "AdamSettings",
    "AdamSteps",
    "ConvNetLayout",
    "Steps",
    "adam_reverse",
    "adam_step",
    "add_rows",
    "channels_last",
    "computing_in",
    "conv3x3",
    "conv3x3_is_faster",
    "convnet_features",
    "convnet_forward",
    "convnet_grad",
    "convnet_grad_jvp",
    "dsa_augment",
    "expect_precision",
    "expect_shape",
    "expect_tensors",
    "first_block_parts",
    "gradient_distance",
    "has_kernel",
    "norm_relu_pool",
    "op_names",
    "param_distance",
    "reference_mode",
    "release_memory",
    "unroll",
    "unroll_adam",
]
