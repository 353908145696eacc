"""RaT-BPTT: a window of inner steps that ends at a random one."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from ddfast.engine.students import Student
from ddfast.methods.bptt.settings import UNROLL, ThroughTimeSettings
from ddfast.methods.bptt.through_time import ThroughTime, Window
from ddfast.runtime.options import AtLeast1, Option


@dataclass(frozen=True, kw_only=True)
class RaTSettings(ThroughTimeSettings):
    """Options of RaT-BPTT."""

    window: AtLeast1 | None = 60
    windows: Annotated[Literal["random", "last"], Option(UNROLL, "Where the window lies: anywhere, or at the end.")] = (
        "random"
    )


class RaTBPTT(ThroughTime):
    """RaT-BPTT (Feng et al. 2024, arXiv:2310.07506, Algorithm 1): the window's start is drawn in every outer step, from
    min_steps to total_steps − window. Inner steps are Adam's, whose moments are carried into the window as constants.

    Its code draws the start once in an epoch of the real images, and per step with --complete_random. It learns labels
    as weights that it cuts at 0; here they are probabilities, so that they can be saved as such.
    """

    Settings = RaTSettings

    def window(self, net: nn.Module, student: Student) -> Window:
        """A random one of the settings' length."""
        settings, length = self.settings, self.settings.longest_window
        last = settings.total_steps - length
        begin = last
        if settings.windows == "random":
            begin = int(torch.randint(settings.min_steps, last + 1, (), generator=self.generator))
        return Window(begin, begin + length)
