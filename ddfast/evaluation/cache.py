"""The trainings of an evaluation: shared out over processes, and kept in a file that a stopped one goes on from."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ddfast.runtime.files import locking, writing
from ddfast.runtime.forecast import Forecast
from ddfast.runtime.ranks import Ranks, expect_ranks


def run_trainings(
    about: Callable[[], dict[str, Any]],  # all that accuracies depend on, besides the network and the training's number
    networks: Sequence[str],
    num_eval: int,
    train: Callable[[str, list[int]], Iterable[float]],  # a network, numbers of trainings -> accuracies, one by one
    output: str | Path | None,
    ranks: Ranks,
    forecast: Forecast,
) -> dict[str, list[float]]:
    """Test accuracies by network, of trainings 0 … num_eval − 1, each done once by one of the ranks.

    `output`: JSON lines; an accuracy is added as soon as it is known, and one that is there already is not computed
    again. One file can serve several evaluations.
    """
    expect_ranks(ranks)
    path, digest = None if output is None else Path(output), ""
    if path is not None:
        digest = hashlib.sha256(json.dumps(about(), sort_keys=True).encode()).hexdigest()[:16]
    known = ranks.first(lambda: {} if path is None else _read(path, digest))
    wanted = [(name, n) for name in networks for n in range(num_eval)]
    mine, found = ranks.mine([training for training in wanted if training not in known]), {}
    forecast.did(len(wanted) // ranks.size - len(mine))
    for name in networks:
        numbers = [n for network, n in mine if network == name]
        for n, accuracy in zip(numbers, train(name, numbers), strict=True):
            found[name, n] = accuracy
            forecast.did()
            if path is not None:
                _add(path, {"evaluation": digest, "network": name, "training": n, "accuracy": accuracy})
    for others in ranks.gather(found):
        known |= others
    return {name: [known[name, n] for n in range(num_eval)] for name in networks}


def _read(path: Path, digest: str) -> dict[tuple[str, int], float]:
    known = {}
    with writing(path):  # a place that cannot be written to is told before the trainings
        path.parent.mkdir(parents=True, exist_ok=True)
        open(path, "ab").close()
    text = path.read_text(encoding="utf-8", errors="replace")
    if "\n" in text and not text.startswith('{"evaluation": '):
        raise ValueError(f"{path}: is another file than one of accuracies; choose another output")
    for line in text.splitlines():
        try:
            row = json.loads(line)
            if row["evaluation"] == digest and isinstance(row["training"], int) and 0 <= row["accuracy"] <= 100:
                known[row["network"], row["training"]] = row["accuracy"]
        except (ValueError, KeyError, TypeError):
            continue  # the line that a kill cut off; its training is done again
    return known


def _add(path: Path, row: dict[str, Any]) -> None:
    with writing(path), open(path, "ab+") as file, locking(path, wait=True):
        end = file.seek(0, 2)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":  # a line that a kill cut off
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()  # while the lock is held
