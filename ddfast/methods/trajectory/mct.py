"""MCT: the experts' trajectories are made convex before they are matched."""

from dataclasses import dataclass
from typing import Annotated, Any

from ddfast.engine.students.base import layer_sizes
from ddfast.experts import SegmentReader
from ddfast.experts.convex import ConvexPaths, ConvexReader
from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.settings import UNROLL, TrajectorySettings
from ddfast.runtime.options import AtLeast0, Ge, Option


@dataclass(frozen=True, kw_only=True)
class MCTSettings(TrajectorySettings):
    """Those of the family, and of the paths."""

    waypoints: Annotated[int, Ge(2), Option(UNROLL, "Points between which an expert's path is straight.")] = 3
    smoothing: Annotated[AtLeast0, Option(UNROLL, "Epochs to either side that an inner point is the mean of.")] = 1


class MCT(TrajectoryMatching):
    """Matching convexified trajectories (MCT: Zhong et al. 2025).

    Layer by layer an expert's path is replaced by straight lines between `waypoints` of its points, at the share of the
    way that the layer had gone (ddfast.experts.convex). Starts are real epochs from min_start_epoch to
    max_start_epoch − 1, targets are expert_epochs later. The paths are kept beside the experts, a few snapshots each.
    """

    Settings = MCTSettings

    def reader(self, **options: Any) -> SegmentReader:
        """Of convexified paths."""
        settings: MCTSettings = self.settings
        first, last = settings.min_start_epoch, settings.max_start_epoch - 1 + settings.expert_epochs
        layers = list(layer_sizes(self.resources.network))
        paths = ConvexPaths(self.resources.experts, layers, first, last, settings.waypoints, settings.smoothing)
        return ConvexReader(paths, **options)
