"""What a synthetic set is worth."""

from ddfast.evaluate.protocol import Evaluation, evaluate, evaluate_random_real, evaluate_snapshots

__all__ = ["Evaluation", "evaluate", "evaluate_random_real", "evaluate_snapshots"]
