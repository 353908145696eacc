"""What distilled sets are for, and what they tell of a method: studies, each a function and `ddfast study NAME`.

A study keeps its trainings in a folder and goes on from there when it is called again; `architectures` and `continual`
share them over the processes that call them together (ddfast.ranks). It returns a table: "rows", and what it says of
them in "findings".
"""

from ddfast.studies.accumulated_error import trajectory_error
from ddfast.studies.architecture_search import architectures
from ddfast.studies.continual_learning import continual
from ddfast.studies.federated_learning import federated
from ddfast.studies.gradient_approximation import gradient_error
from ddfast.studies.privacy_look import privacy
from ddfast.studies.ranges import range_study
from ddfast.studies.worth_of_loss import loss_correlation

__all__ = [
    "architectures",
    "continual",
    "federated",
    "gradient_error",
    "loss_correlation",
    "privacy",
    "range_study",
    "trajectory_error",
]
