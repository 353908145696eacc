"""Which ConvNet a row of flat parameters is: its sizes, and where they lie."""

import math
from dataclasses import dataclass

import torch

from ddfast.ops._precision import expect_precision


@dataclass(frozen=True)
class ConvNetLayout:
    """Which ConvNet a row of flat parameters is: [3×3 convolution → norm_relu_pool] × depth → linear.

    The row holds what `ddfast.networks.ConvNet.parameters()` yields, in that order: of every block the convolution's
    weight and bias, then the norm's; then the linear layer's. `border` pixels of zeros are put around the images.

    `precision` is that of the convolutions: "default", as PyTorch is set; "float32", without TF32; or "bfloat16", with
    maps in bfloat16 and everything else (parameters, statistics, gradients, linear layer, loss) in float32. Autocast
    changes nothing. ValueError for another, and for numbers that no ConvNet has.
    """

    width: int
    depth: int
    num_classes: int
    border: int = 0
    eps: float = 1e-5
    precision: str = "default"

    def __post_init__(self):
        expect_precision(self.precision)
        for name, least, most in (
            ("width", 1, 2**62),
            ("depth", 1, 30),
            ("num_classes", 1, 2**62),
            ("border", 0, 2**30),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}: expected {least} to {most}, got {getattr(self, name)}")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps: expected a finite number of at least 0, got {self.eps}")

    @property
    def sizes(self) -> tuple[int, int, int, int, float, str]:
        """As the ops take them: SIZES."""
        return self.width, self.depth, self.num_classes, self.border, self.eps, self.precision

    def map_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of maps, where parameters and images have this one."""
        return torch.bfloat16 if self.precision == "bfloat16" else dtype

    def maps(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) of every convolution's map, then of the last pool's."""
        H, W = (side + 2 * self.border for side in image_size)
        return [(H >> block, W >> block) for block in range(self.depth + 1)]

    def piece_shapes(self, channels: int, image_size: tuple[int, int]) -> list[tuple[int, ...]]:
        """The shapes of the parameters, in their order."""
        C, K = self.width, self.num_classes
        blocks = [shape for i in range(self.depth) for shape in ((C, C if i else channels, 3, 3), (C,), (C,), (C,))]
        H, W = self.maps(image_size)[-1]
        return [*blocks, (K, C * H * W), (K,)]
