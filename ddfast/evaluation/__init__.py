"""What a synthetic set is worth."""

from ddfast.evaluation.evaluate import (
    Evaluation,
    begin_forecast,
    check_evaluation,
    data_for,
    evaluate,
    evaluate_full_data,
    evaluate_random_real,
    evaluate_snapshots,
    evaluation_seconds,
    networks_of,
)
from ddfast.evaluation.protocols import PROTOCOLS, Protocol, schedule_of

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Protocol",
    "begin_forecast",
    "check_evaluation",
    "data_for",
    "evaluate",
    "evaluate_full_data",
    "evaluate_random_real",
    "evaluate_snapshots",
    "evaluation_seconds",
    "networks_of",
    "schedule_of",
]
