"""Whether experts are of the data, and of the network, that they are used with."""

from typing import Any

from ddfast.data import Dataset, Preprocessing
from ddfast.experts.trajectories import TrajectoryStore


def expect_trained_with(store: TrajectoryStore, data: Dataset, name: str, value: Any, unsaid: Any = None) -> None:
    """ValueError where a setting of the experts has another value; `unsaid`: what it is where they do not say."""
    has = store.settings.get(name, unsaid)
    if has != value and not (name == "optimizer" and has is None):  # not known
        what = "training images" if name == "fingerprint" else name
        raise ValueError(
            f"experts: {store.path} was trained with {what} {has!r} of {store.settings.get('dataset')!r}, "
            f"this run has {value!r} of {data.name!r}"
        )


def expect_preprocessed_alike(store: TrajectoryStore, data: Dataset) -> None:
    """ValueError where the experts saw images that were preprocessed in another way."""
    try:
        trained = Preprocessing.described(store.settings["preprocessing"])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{store.path / 'experts.json'}: does not say how images were preprocessed") from None
    if not trained.matches(data.preprocessing):
        raise ValueError(
            f"experts: {store.path} and this run preprocess images differently: "
            f"{trained.difference(data.preprocessing)}; pass --preprocessing {store.path} (in Python "
            f"preprocessing) to keep that of the former"
        )
