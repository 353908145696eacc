"""Tuning: search settings on held-out training images with Optuna; `ddfast.tune`."""

from ddfast.tuning.tune import TuneResult, tune

__all__ = ["TuneResult", "tune"]
