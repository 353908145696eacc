"""What a synthetic set is worth."""

from ddfast.evaluate.protocol import BASELINE_LR, Evaluation, accuracy, evaluate

__all__ = ["BASELINE_LR", "Evaluation", "accuracy", "evaluate"]
