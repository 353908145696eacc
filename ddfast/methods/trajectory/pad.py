"""PAD: what is nearest already, or near the input, is left out of the distance."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ddfast.methods.trajectory.datm import DATM, DATMSettings
from ddfast.runtime.options import Ge, Lt, Option


@dataclass(frozen=True, kw_only=True)
class PADSettings(DATMSettings):
    """Those of DATM; drop_ratio: the share of parameters that is left out."""

    drop_ratio: Annotated[
        float, Ge(0), Lt(1), Option("Unroll", "The share of near parameters that is left out of the distance.")
    ] = 0.5
    drop_by: Annotated[
        Literal["parameters", "tensors", "depth"],
        Option("Unroll", "What is left out: the nearest parameters, or tensors; or the first tensors by depth."),
    ] = "parameters"


class PAD(DATM):
    """Prioritize alignment in dataset distillation (Li et al. 2024): DATM with a filtered distance.

    Left out of the distance and of its normalisation is, of all parameters, the drop_ratio with the smallest squared
    distances between student and target ("parameters"); of all weights and biases, those with the smallest sums of
    them ("tensors"); or those nearest to the input ("depth", the paper's rule). The experts' images by difficulty are
    an option of theirs, `curriculum`.
    """

    Settings = PADSettings

    def compare(self, student: Tensor, target: Tensor, start: Tensor) -> Tensor:  # [S, P] each -> [S]
        """The losses over what stays."""
        with torch.no_grad():
            kept = self._kept((student - target).square())
        return super().compare(student, target, start) if kept is None else self.distance(student, target, start, kept)

    def _kept(self, squares: Tensor) -> Tensor | None:  # [S, P] -> 1 where it stays, [S, P] or [P]; None: everywhere
        ratio, rule = self.settings.drop_ratio, self.settings.drop_by
        if rule == "parameters":
            dropped = int(ratio * squares.shape[1])
            if dropped == 0:
                return None
            smallest = squares.sort(1).values[:, dropped, None]  # that stays
            return (squares >= smallest).to(squares.dtype)
        sizes = [p.numel() for p in self.resources.network.parameters()]
        dropped = int(ratio * len(sizes))
        if dropped == 0:
            return None
        if rule == "depth":
            of_tensors = (torch.arange(len(sizes), device=squares.device) >= dropped).expand(len(squares), -1)
        else:
            sums = torch.stack([piece.sum(1) for piece in squares.split(sizes, 1)], 1)  # [S, tensors]
            of_tensors = sums >= sums.sort(1).values[:, dropped, None]
        lengths = torch.tensor(sizes, device=squares.device)
        return of_tensors.to(squares.dtype).repeat_interleave(lengths, 1)
