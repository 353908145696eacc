"""Real data sets and synthetic ones."""

from ddfast.data.datasets import DATASETS, Dataset, Preprocessing, load_dataset
from ddfast.data.synthetic import SyntheticSet

__all__ = ["DATASETS", "Dataset", "Preprocessing", "SyntheticSet", "load_dataset"]
