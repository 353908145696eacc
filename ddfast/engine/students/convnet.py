"""The field's ConvNet as a student: the fused ops, without an autograd graph."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ddfast.engine.students.base import GradientJvp, Step, StepBytes, Student, Wanted, check_labels, layer_sizes
from ddfast.engine.students.fused import why_not_fused
from ddfast.engine.students.wrappers import unwrapped
from ddfast.ops import ConvNetLayout, convnet_grad, convnet_grad_jvp, first_block_parts


class ConvNetStudent(Student):
    """A ConvNet of instance norm, ReLU and average pooling, whose flat parameters are those of `ConvNet.parameters()`.

    The module's own parameters are never read. Images and labels may also be each student's own, [S, B, C, H, W] and
    [S, B] or [S, B, K]. `precision` is that of ConvNetLayout. ValueError for a network that the
    fused ops cannot run, or an unknown precision.
    """

    def __init__(self, network: nn.Module, precision: str = "default") -> None:
        network = unwrapped(network)
        reason = why_not_fused(network)
        if reason is not None:
            raise ValueError(f"student: {reason}; use ModuleStudent")
        self.num_parameters = sum(p.numel() for p in network.parameters())
        self.layer_sizes = layer_sizes(network)
        blocks, K = len(network.features) // 4, network.classifier.out_features
        norm = network.features[1]
        self.layout = ConvNetLayout(len(norm.weight), blocks, K, network.border, norm.eps, precision)

    def to_fused(self, parameters: Tensor) -> Tensor:  # [S, P] -> [S, P of the layout]
        """Flat parameters in the order of the layout."""
        return parameters

    def from_fused(self, parameters: Tensor) -> Tensor:  # [S, P of the layout] -> [S, P]
        """The inverse of to_fused."""
        return parameters

    def grad(
        self, parameters: Tensor, images: Tensor, labels: Tensor, *, step: Step, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        check_labels(labels, self.layout.num_classes)
        losses, gradient, kept = convnet_grad(parameters, images, labels, self.layout, keep=step.keep)
        step.memory = kept or None
        return losses, gradient

    def grad_jvp(
        self, parameters: Tensor, images: Tensor, labels: Tensor, direction: Tensor, *, step: Step, wanted: Wanted
    ) -> GradientJvp:
        kept, step.memory = step.memory, None  # taken once; a second backward computes it again
        slope, h_sigma, by_images, by_labels = convnet_grad_jvp(
            parameters, images, labels, direction, self.layout, kept=kept, wanted=wanted
        )
        return GradientJvp(
            slope,
            h_sigma if wanted.parameters else None,
            by_images if wanted.images else None,
            by_labels if wanted.labels else None,
        )

    def step_bytes(
        self, images: torch.Size, students: int, dtype: torch.dtype, on_gpu: bool = False
    ) -> StepBytes | None:
        """Of block i, A is the size of the convolution's result and Y of the pooled map: what csrc/convnet/glue.cpp has
        alive at once, of x, z, g_z, g_y and their tangents, is most at one of the blocks of the backward pass. A first
        block that runs image by image has maps of an image per thread only; where convolutions run on tiles, their
        filters are transformed (36 numbers for 9): two layers', or the sums of one's gradient, twice."""
        B, C, H, W = images
        layout, b = self.layout, self.layout.border
        maps = [students * layout.width * h * w for h, w in layout.maps((H, W))]
        parts = first_block_parts(layout, images, students, dtype, on_gpu)
        first = 0 if parts else maps[0]  # what z of the first block takes
        grad = grad_jvp = of_kept = 0
        for i, (A, Y) in enumerate(pairwise(maps)):
            earlier = sum(maps[1 : i + 1])
            before, A = first + earlier, A if i else first
            grad = max(grad, before + earlier + Y + A)
            grad_jvp = max(grad_jvp, 2 * before + 2 * earlier + 2 * Y + 2 * A)
            of_kept = max(of_kept, first + before + 2 * earlier + Y + 2 * A)
        element = layout.map_dtype(dtype).itemsize
        result = dtype.itemsize * students * self.num_parameters  # g or Hσ
        result += element * B * C * (H + 2 * b) * (W + 2 * b)  # the padded images
        copied = layout.map_dtype(dtype) != dtype  # the convolutions' weights, and their tangents
        weights = sum(torch.Size(shape).numel() for shape in layout.piece_shapes(C, (H, W)) if len(shape) == 4)
        copies = element * students * weights * copied
        own = parts * maps[0] // students  # of one map of an image per thread; half as many again for several students
        own += own // 2 * (students > 1)
        tiles = 2 * 36 * layout.width**2 * (parts > 0)
        at_the_peak = (
            element * max(B * maps_alive + tiles, B * maps[1] * times + own_maps * own) + result + times * copies
            for maps_alive, times, own_maps in ((grad, 1, 2), (grad_jvp, 2, 4), (of_kept, 2, 4))
        )
        return StepBytes(*at_the_peak, kept=element * B * (sum(maps[1:-1]) + sum(maps[1:])))

    def why_no_micro_batches(self, images: torch.Size | None = None) -> None:
        return None
