"""Trackers that receive a run's records during the run: TensorBoard, Weights & Biases, trackio, or a CSV file."""

import csv
import importlib
import logging
import re
import secrets
from collections.abc import Callable
from functools import wraps
from typing import Any

from ddfast.data import SyntheticSet
from ddfast.data.sheet import sheet
from ddfast.run.folder import RunFolder
from ddfast.runtime.files import replacing

log = logging.getLogger("ddfast")

PROJECT = "ddfast"
PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}
TRACKERS = ("csv", *PACKAGES)


class Tracker:
    """Receives numbers, accuracies and images of a run by iteration; this base class ignores them."""

    def begin(self, config: dict[str, Any], iteration: int) -> None:
        """Start, or continue after an iteration; records of later iterations are dropped if possible."""

    def log(self, numbers: dict[str, Any], iteration: int) -> None:
        """Log numbers by name; None for numbers that are not finite."""

    def log_images(self, synthetic: SyntheticSet, iteration: int) -> None:
        """Log the current images."""

    def log_accuracies(self, accuracy: dict[str, dict[str, Any]], iteration: int) -> None:
        """Log the mean of each row of `DistillResult.accuracy`."""
        self.log({f"accuracy/{name}": row["mean"] for name, row in accuracy.items()}, iteration)

    def finish(self) -> None:
        """End the run."""


class CSV(Tracker):
    """log.csv in the run folder: a line per iteration, a column per number."""

    def __init__(self, run: RunFolder) -> None:
        self._path = run.path / "log.csv"
        self._rows: dict[int, dict[str, Any]] = {}
        self._columns = {"iteration": None}  # an ordered set
        self._last = 0

    def begin(self, config: dict[str, Any], iteration: int) -> None:
        if self._path.is_file():
            with open(self._path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if (row.get("iteration") or "").isdigit()]
            self._rows = {n: row for row in rows if (n := int(row["iteration"])) <= iteration}
            self._columns |= {name: None for row in self._rows.values() for name in row}
            self._last = max(self._rows, default=0)
        self._write()

    def log(self, numbers: dict[str, Any], iteration: int) -> None:
        fits = iteration > self._last and numbers.keys() <= self._columns.keys()
        self._rows.setdefault(iteration, {}).update(numbers | {"iteration": iteration})
        self._columns |= dict.fromkeys(numbers)
        self._last = max(self._last, iteration)
        if fits:
            with open(self._path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, list(self._columns)).writerow(self._rows[iteration])
        else:
            self._write()

    def _write(self) -> None:
        with replacing(self._path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self._columns))
            writer.writeheader()
            writer.writerows(self._rows.values())


class TensorBoard(Tracker):
    """Event files in tensorboard/ of the run folder."""

    def __init__(self, run: RunFolder) -> None:
        self._folder = run.path / "tensorboard"
        self._writer: Any = None

    def begin(self, config: dict[str, Any], iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=iteration + 1 if iteration else None)
        self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()), iteration)

    def log(self, numbers: dict[str, Any], iteration: int) -> None:
        for name, value in numbers.items():
            if isinstance(value, (int, float)) and name != "iteration":
                self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def log_images(self, synthetic: SyntheticSet, iteration: int) -> None:
        from torchvision.transforms.v2.functional import pil_to_tensor

        self._writer.add_image("images", pil_to_tensor(sheet(synthetic)), iteration)

    def finish(self) -> None:
        self._writer.close()


class Wandb(Tracker):
    """Weights & Biases, or a module with the same functions, such as trackio."""

    def __init__(self, run: RunFolder, name: str) -> None:
        self._module, self._name, self._run = importlib.import_module(name), name, run

    def begin(self, config: dict[str, Any], iteration: int) -> None:
        name = self._unique_name()
        more = {"id": name, "dir": str(self._run.path)} if self._name == "wandb" else {}
        self._module.init(project=PROJECT, name=name, config=dict(config), resume="allow", **more)

    def _unique_name(self) -> str:
        """The folder's name and a random suffix (other folders may have the same name), stored in the folder."""
        file = self._run.path / "log_id.txt"
        if not file.is_file():
            folder = re.sub(r"[^\w.-]+", "-", self._run.path.resolve().name)
            with replacing(file) as temporary:
                temporary.write_text(f"{folder}-{secrets.token_hex(4)}\n")
        return file.read_text().strip()

    def log(self, numbers: dict[str, Any], iteration: int) -> None:
        known = {name: value for name, value in numbers.items() if value is not None and name != "iteration"}
        self._module.log(known, step=iteration)

    def log_images(self, synthetic: SyntheticSet, iteration: int) -> None:
        self._module.log({"images": self._module.Image(sheet(synthetic))}, step=iteration)

    def finish(self) -> None:
        self._module.finish()


class Guarded(Tracker):
    """A tracker whose failure is logged once and does not stop the run."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._tracker: Tracker | None = tracker
        for method in ("begin", "log", "log_images", "finish"):
            setattr(self, method, self._guarded(name, getattr(tracker, method)))

    def _guarded(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        @wraps(call)
        def guarded(*args: Any) -> None:
            if self._tracker is None:
                return
            try:
                call(*args)
            except Exception as error:  # such as a server that is down or a full disk; the run must continue
                self._tracker = None
                log.warning("log: %s failed, nothing more goes there (%s: %s)", name, type(error).__name__, error)

        return guarded


def check_tracker(name: str | None) -> None:
    """Raise ValueError, before any work, if the tracker's package is not installed."""
    if name in PACKAGES:
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError as error:
            raise ValueError(f"log: {name} is not installed ({error}); call pip install {name}") from None


def open_tracker(name: str | None, run: RunFolder) -> Tracker:
    """The tracker of a run folder; one that does nothing if this process only watches the folder."""
    if name is None or not run.writes:
        return Tracker()
    makers: dict[str, Callable[[], Tracker]] = {"csv": lambda: CSV(run), "tensorboard": lambda: TensorBoard(run)}
    return Guarded(name, makers.get(name, lambda: Wandb(run, name))())
