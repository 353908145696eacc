"""MTT: match a segment of an expert's trajectory."""

from ddfast.methods.trajectory.matching import TrajectoryMatching


class MTT(TrajectoryMatching):
    """Matching training trajectories (Cazenavette et al. 2022, Algorithm 1, eq. 2): the family with its defaults.

    Experts: plain SGD. Every option of MatchingSettings serves here too.
    """
