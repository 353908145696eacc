"""The trainings of an evaluation: shared out over processes, and kept in a file that a stopped one goes on from."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ddfast.runtime.files import locking, writing
from ddfast.runtime.forecast import Forecast
from ddfast.runtime.ranks import Ranks, expect_ranks


def run_trainings(
    about: Callable[[str], dict[str, Any]],  # all that a network's records depend on, besides the training's number
    networks: Sequence[str],
    count: int,
    train: Callable[[str, list[int]], Iterable[dict[str, Any]]],  # a network, numbers of trainings -> records
    output: str | Path | None,
    ranks: Ranks,
    forecast: Forecast,
) -> dict[str, list[dict[str, Any]]]:
    """Records by network, of trainings 0 … count − 1, each done once by one of the ranks: what `train` yields, an
    "accuracy" in percent among it, and the training's "seconds", which are measured where it does not tell them.

    `output`: JSON lines; a record is added as soon as it is known, and one that is there already is not computed again.
    One file can serve several evaluations.
    """
    expect_ranks(ranks)
    path, digests = None if output is None else Path(output), {}
    if path is not None:
        digests = {name: _digest(about(name)) for name in networks}
    known = ranks.first(lambda: {} if path is None else _read(path, digests))
    wanted = [(name, n) for name in networks for n in range(count)]
    mine, found = ranks.mine([training for training in wanted if training not in known]), {}
    forecast.did(len(wanted) // ranks.size - len(mine))
    for name in networks:
        numbers = [n for network, n in mine if network == name]
        began = time.perf_counter()
        for n, record in zip(numbers, train(name, numbers), strict=True):
            record = {"seconds": round(time.perf_counter() - began, 3), **record}
            found[name, n] = record
            forecast.did()
            if path is not None:
                _add(path, {"evaluation": digests[name], "network": name, "training": n, **record})
            began = time.perf_counter()
    for others in ranks.gather(found):
        known |= others
    return {name: [known[name, n] for n in range(count)] for name in networks}


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path, digests: dict[str, str]) -> dict[tuple[str, int], dict[str, Any]]:
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
            name, n = row.pop("network"), row.pop("training")
            is_whole = isinstance(n, int) and 0 <= row["accuracy"] <= 100 and row["seconds"] >= 0
            if row.pop("evaluation") == digests.get(name) and is_whole:
                known[name, n] = row
        except (ValueError, KeyError, TypeError, AttributeError):
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
