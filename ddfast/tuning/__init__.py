"""Tuning: settings searched on images that are held out of the training data, with Optuna; `ddfast.tune`."""

from ddfast.tuning.tune import TuneResult, tune

__all__ = ["TuneResult", "tune"]
