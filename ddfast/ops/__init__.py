"""The ops: each a plain-PyTorch reference, the specification, with compiled kernels behind the same name."""

from ddfast.ops._extension import EXTENSION
from ddfast.ops._library import has_kernel, op_names, reference_mode
from ddfast.ops.norm_relu_pool import norm_relu_pool
from ddfast.ops.param_distance import param_distance

__all__ = ["EXTENSION", "has_kernel", "norm_relu_pool", "op_names", "param_distance", "reference_mode"]
