"""What a synthetic set is worth."""

from ddfast.evaluate.protocol import (
    Evaluation,
    check_evaluation,
    data_for,
    evaluate,
    evaluate_full_data,
    evaluate_random_real,
    evaluate_snapshots,
    networks_of,
)
from ddfast.evaluate.schedule import PROTOCOLS, Protocol

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Protocol",
    "check_evaluation",
    "data_for",
    "evaluate",
    "evaluate_full_data",
    "evaluate_random_real",
    "evaluate_snapshots",
    "networks_of",
]
