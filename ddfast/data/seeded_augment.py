"""Any random augmentation, made to draw the same numbers for the same inner step."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from ddfast.runtime import seeds


class SeededAugment:
    """A random `function(images) -> images` as an `augment(images, n)` that draws the same for the same step n.

    The backward of ddfast.unroll calls the augmentation of a step again. Every call seeds the global random states of
    PyTorch (on the CPU and the images' device), NumPy and Python from (seed, n), and leaves them as it found them. What
    a function draws from a generator of its own is not repeated: the gradient would be that of other images. One seed
    is one draw for each step: take another for each outer iteration.

    Args:
        function: of images [B, C, H, W], to be differentiated in them.
        seed: a whole number.

    Errors: TypeError for a function that cannot be called, or a seed that is no whole number.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],  # [B, C, H, W] -> [B, C, H, W]
        seed: int,
    ) -> None:
        if not callable(function):
            raise TypeError(f"function: expected a function of images, got {function!r}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed: expected a whole number, got {seed!r}")
        self.function, self.seed = function, seed

    def __call__(self, images: Tensor, n: int) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        """Augment the minibatch of step n."""
        stream = seeds.generator(self.seed, "augment", n)
        with seeds.dropout_from(stream, images.device), _numpy_and_python_from(stream.initial_seed()):
            return self.function(images)


@contextmanager
def _numpy_and_python_from(seed: int) -> Iterator[None]:
    states = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
