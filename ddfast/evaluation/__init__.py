"""What a synthetic set is worth."""

from ddfast.evaluation.baselines import (
    BASELINES,
    evaluate_full_data,
    evaluate_random_real,
    evaluate_snapshots,
    more_baselines,
)
from ddfast.evaluation.evaluate import (
    begin_forecast,
    check_evaluation,
    data_for,
    evaluate,
    evaluation_seconds,
    names_of,
    networks_of,
)
from ddfast.evaluation.protocols import PROTOCOLS, Protocol, protocol_named
from ddfast.evaluation.rates import asked_rates
from ddfast.evaluation.result import Evaluation
from ddfast.evaluation.schedule import schedule_of
from ddfast.evaluation.trainings import num_trainings

__all__ = [
    "BASELINES",
    "PROTOCOLS",
    "Evaluation",
    "Protocol",
    "asked_rates",
    "begin_forecast",
    "check_evaluation",
    "data_for",
    "evaluate",
    "evaluate_full_data",
    "evaluate_random_real",
    "evaluate_snapshots",
    "evaluation_seconds",
    "more_baselines",
    "names_of",
    "networks_of",
    "num_trainings",
    "protocol_named",
    "schedule_of",
]
