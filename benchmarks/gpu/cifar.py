"""CIFAR-10 with 1 image per class, from raw data by the preset of MTT, as far as the minutes go.

Experts are trained until a third of the time is gone or there are as many as the preset's, then images are distilled
and evaluated on the way, and at last evaluated by the whole protocol beside random real ones. The seconds of a line
are those since the data began to be read. The preset's learning rates are constant: a run that ends early is a
shorter one.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

import ddfast
from benchmarks.before_after import picture
from benchmarks.gpu.lines import Work
from benchmarks.lines import read_lines
from benchmarks.measure import DEVICE

PRESET, EPOCHS = "mtt/cifar10/ipc1", 4  # of experts, of which a run uses 3
FIRST, EXPERTS, SHARE = 10, 100, 0.33  # trained at first, at most, and the share of the time that they get
ITERATIONS, EVERY, SHOWN = 5000, 250, 50  # iterations, between two evaluations, between two lines
RESERVE, UNKNOWN = 15.0, 0.3  # seconds beside the last evaluation; the share of the time for all, until one is timed
TINY = {"network": "convnet:width=8", "syn_steps": 2, "eval_epochs": 2, "num_eval": 1, "full_epochs": 2}


def made_up(file: Path) -> Path:
    """Ten classes of noise around a colour each, for a rehearsal."""
    numbers, labels = numpy.random.default_rng(0), numpy.arange(40, dtype=numpy.uint8) % 10
    colours = numbers.integers(40, 215, (10, 1, 1, 3))
    images = (colours[labels] + numbers.integers(-20, 20, (40, 32, 32, 3))).astype(numpy.uint8)
    numpy.savez(file, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    return file


def graph_is_right(output: Path) -> bool:
    """Whether the meta-gradient was measured as a CUDA graph, and was right every time."""
    rows = [line for line in read_lines(output / "meta_gradient.jsonl") if line.get("row") == "graph"]
    return DEVICE == "cuda" and any("error" in line for line in rows) and all(line.get("ok", True) for line in rows)


class Course:
    """The run as it goes: a line for every evaluation, and an end in time for the last one."""

    def __init__(self, work: Work, run: Path, began: float) -> None:
        self._work, self._run, self._began = work, run, began
        self._reserve = UNKNOWN * work.left()

    def __call__(self, distillation: ddfast.Distillation) -> Iterator[dict[str, Any]]:
        for record in distillation:
            began, seen = time.monotonic(), len(read_lines(self._run / "evaluations.jsonl"))
            yield record  # a due evaluation is made before this goes on
            lines = read_lines(self._run / "evaluations.jsonl")
            elapsed = time.monotonic() - self._began
            if len(lines) > seen:
                self._reserve = 4 * (time.monotonic() - began) + RESERVE  # random real images and full data as well
                accuracy = {"accuracy": lines[-1]["mean"], "std": lines[-1]["std"]}
                self._work.lines.write("evaluation", iteration=record["iteration"], seconds=elapsed, **accuracy)
            elif record["iteration"] % (1 if self._work.rehearse else SHOWN) == 0:
                words = {"iteration": record["iteration"], "seconds": elapsed, "loss": record["loss"]}
                self._work.lines.write("iteration", **words, step=record["seconds"])
            if not self._work.rehearse and self._work.left() < self._reserve:
                return


def experts_of(data: Any, network: str, folder: Path, work: Work, began: float) -> Any:
    """As many experts as a third of the time allows."""
    goal = 1 if work.rehearse else FIRST
    options = {
        "network": network,
        "train_epochs": EPOCHS,
        "output": folder,
        "batch_train": 20 if work.rehearse else 256,
    }
    end, started = work.left() * SHARE, time.monotonic()
    store = ddfast.train_experts(data, num_experts=goal, **options)
    took = time.monotonic() - started
    work.lines.write("experts", count=goal, epochs=EPOCHS, seconds=time.monotonic() - began)
    more = 0 if work.rehearse else min(EXPERTS - goal, int(goal * (end - took) / took))
    if more > 0:
        store = ddfast.train_experts(data, num_experts=goal + more, **options)
        work.lines.write("experts", count=goal + more, epochs=EPOCHS, seconds=time.monotonic() - began)
    return store


def run(work: Work) -> None:
    """Lines of the experts, of iterations and evaluations, and of the result."""
    file = made_up(work.scratch / "made-up.npz") if work.rehearse and work.data is None else work.data
    began, run = time.monotonic(), work.scratch / "run"
    try:
        data = ddfast.load_dataset("cifar10" if file is None else str(file), zca=not work.rehearse)
    except FileNotFoundError as error:
        work.lines.write("data", skipped=f"{error}; --data takes a file that --pack wrote")
        return
    work.lines.write("data", train=len(data.train_images), test=len(data.test_images), seconds=time.monotonic() - began)
    store = experts_of(data, TINY["network"] if work.rehearse else "convnet", work.scratch / "experts", work, began)
    options = {"iterations": ITERATIONS, "eval_every": EVERY}
    if work.rehearse:
        options = {"iterations": 3, "eval_every": 2} | {name: TINY[name] for name in TINY if name != "network"}
    graph, course = graph_is_right(work.output), Course(work, run, began)
    result = ddfast.distill(
        data, ipc=1, preset=PRESET, experts=store, output=run, cuda_graph=graph, progress=course, **options
    )
    accuracy = {name: [of["mean"], of["std"]] for name, of in result.accuracy.items()}
    words = {"iterations": len(result.history), "experts": store.num_experts, "cuda_graph": graph}
    work.lines.write("result", seconds=time.monotonic() - began, accuracy=accuracy, **words)
    keep(run, work.output)


def keep(run: Path, output: Path) -> None:
    """What is small of a run: its settings and summary, the set, and pictures of it."""
    from torchvision.utils import save_image

    for name in ("config.json", "summary.json", "synthetic.safetensors", "synthetic.json", "curves.png"):
        if (run / name).exists():
            shutil.copy(run / name, output / f"cifar-{name}")
    save_image(picture(run), output / "cifar-before-after.png")
