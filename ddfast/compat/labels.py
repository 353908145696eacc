"""What the label tensors of others are: classes, one-hot rows, probabilities or logits."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddfast.compat.torch_files import expect_floats, expect_held, load
from ddfast.data import SyntheticSet
from ddfast.runtime.arguments import expect_one_of

log = logging.getLogger("ddfast")

LABELS = ("classes", "onehot", "probabilities", "logits")
LOG_OF_ZERO = -1000.0  # its exponential is 0 in float32 and in float64, and it is a number
SUM = 1e-3  # how far from 1 the probabilities of an image may sum: those of narrow floats do
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


def read_labels(path: Path, kind: str | None) -> Tensor:  # int64 [I], or logits float32 [I, K]
    """The labels of a file, as `as_labels`."""
    return as_labels(load(path), str(path), kind)


def as_labels(labels: Any, what: str, kind: str | None) -> Tensor:  # int64 [I], or logits float32 [I, K]
    """Classes, or label logits, of what a file holds.

    One number an image is its class, be it whole or a float. Of a row an image `kind` says what it is, one of LABELS:
    classes takes the largest entry; onehot the entry that is 1, of rows that may be centred (KIP: minus 1/K);
    probabilities p become the logits log p, whose softmax is p to about 1e-6 of each, and exactly 0 for 0 and 1 for 1.
    None infers it: rows that are all one-hot are, and rows that are all distributions are probabilities; a line of the
    log says which, and how to read them otherwise.

    Errors: ValueError for labels that are not what they are said to be.
    """
    if kind is not None:
        expect_one_of("labels", kind, LABELS)
    if not isinstance(labels, Tensor):
        raise ValueError(f"{what}: expected a tensor, got {type(labels).__name__}")
    expect_held(labels, what)
    labels = labels.detach().clone(memory_format=torch.contiguous_format)
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() == 1:
        if not (labels.isfinite().all() and labels.equal(labels.round() if labels.is_floating_point() else labels)):
            raise ValueError(f"{what}: expected whole numbers as classes, got {labels[:5].tolist()} …")
        return labels.long()
    floats = labels.float() if labels.dtype in (*WHOLE, torch.float64) else expect_floats(labels, what).float()
    if floats.dim() != 2 or not floats.isfinite().all():
        raise ValueError(f"{what}: expected classes [I] or finite soft labels [I, K], got {list(labels.shape)}")
    if kind is None:
        kind = _kind_of(floats)
        log.info("%s: %s", what, SAID[kind])
    elif kind in TESTS and not TESTS[kind](floats):
        raise ValueError(f"{what}: expected {EXPECTED[kind]}; are they logits?")
    if kind in ("classes", "onehot"):
        return floats.argmax(1)
    return floats if kind == "logits" else labels.double().log().clamp(min=LOG_OF_ZERO).float()


def labels_for(synthetic: SyntheticSet, kind: str | None) -> Tensor:  # [I], or [I, K]
    """The labels of a set as a file of others is to hold them; None for classes of hard ones, logits of soft ones.

    classes loses all but the largest entry of soft labels. Errors: ValueError for one-hot rows of soft labels.
    """
    if kind is not None:
        expect_one_of("labels", kind, LABELS)
    if synthetic.is_hard:
        rows = kind in ("onehot", "probabilities")
        return one_hot(synthetic.labels, len(synthetic.class_names)).float() if rows else synthetic.labels
    if kind == "onehot":
        raise ValueError("labels: the set's are soft; expected probabilities or logits, or classes for their largest")
    return {"classes": synthetic.classes, "probabilities": synthetic.targets}.get(kind or "logits", synthetic.labels)


def classes_for(synthetic: SyntheticSet, kind: str | None, of: str) -> Tensor:  # int64 [I]
    """The classes, for a format that holds no other labels; ValueError where that would lose something unasked."""
    if kind not in (None, "classes"):
        raise ValueError(f"labels: {of} holds classes; expected classes, got {kind!r}")
    if synthetic.is_soft and kind is None:
        raise ValueError(
            f"labels: {of} holds classes, and the set's labels are soft; labels=classes writes the largest"
        )
    return synthetic.classes


def _kind_of(rows: Tensor) -> str:  # [I, K]
    return next((kind for kind, is_such in TESTS.items() if is_such(rows)), "logits")


def _is_onehot(rows: Tensor) -> bool:  # [I, K]
    """Whether every row is 0 but for a single 1; or that minus 1/K."""
    wanted = one_hot(rows.argmax(1), rows.shape[1]).float() if len(rows) else rows
    return rows.equal(wanted) or torch.allclose(rows, wanted - 1 / rows.shape[1], rtol=0, atol=1e-5)


def _are_distributions(rows: Tensor) -> bool:  # [I, K]
    return bool((rows >= 0).all()) and torch.allclose(rows.double().sum(1), rows.new_ones(()).double(), atol=SUM)


TESTS = {"onehot": _is_onehot, "probabilities": _are_distributions}  # in this order: one-hot rows are both
EXPECTED = {
    "onehot": "rows of zeros with a single 1",
    "probabilities": "probabilities, of 0 or more with sum 1 per row",
}
SAID = {
    "onehot": "every row is one-hot, read as classes; --labels logits reads rows as label logits",
    "probabilities": "every row sums to 1, read as probabilities; --labels logits reads rows as label logits",
    "logits": "read as label logits, whose softmax is the target; --labels classes takes the largest of each row",
}
