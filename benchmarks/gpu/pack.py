"""A part of CIFAR-10 in one small file, for a machine that has no data."""

import os
from pathlib import Path

import numpy

from benchmarks.evidence import pictures

MOST = 60 * 10**6  # bytes
FOLDER = "cifar-10-batches-py"


def pack(file: Path, per_class: int | None, test_per_class: int, root: Path | None = None) -> str:
    """Write the first images of each class; None: as many for training as the file holds. What was written, in words.

    `root`: where the archive was unpacked; None for DDFAST_DATA. ValueError for more than MOST bytes.
    """
    root = Path(os.environ.get("DDFAST_DATA", ".")) if root is None else root
    if not (root / FOLDER).is_dir():
        raise FileNotFoundError(f"there is no {root / FOLDER}: set DDFAST_DATA to the folder of {FOLDER}")
    train = pictures(root / FOLDER, [f"data_batch_{n}" for n in range(1, 6)])
    test = firsts(*pictures(root / FOLDER, ["test_batch"]), test_per_class)
    if per_class is None:
        size = 10 * train[0][0].nbytes
        per_class = min(5000, (MOST - test[0].nbytes - 10**6) // size)
    images, labels = firsts(*train, per_class)
    if images.nbytes + test[0].nbytes > MOST:
        raise ValueError(f"{per_class} and {test_per_class} images per class take more than {MOST / 1e6:.0f} MB")
    numpy.savez(file, x_train=images, y_train=labels, x_test=test[0], y_test=test[1])
    return f"{len(images)} training and {len(test[0])} test images, {file.stat().st_size / 1e6:.1f} MB"


def firsts(images: numpy.ndarray, labels: numpy.ndarray, count: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The first `count` of each class, labels in bytes."""
    chosen = numpy.concatenate([numpy.flatnonzero(labels == label)[:count] for label in range(10)])
    return numpy.ascontiguousarray(images[chosen]), labels[chosen].astype(numpy.uint8)
