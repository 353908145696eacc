"""What an outer step costs beside its unroll: time, memory between two steps and at the peak, bytes of a checkpoint.

python -m benchmarks.outer_step [ANOTHER CHECKOUT, which takes turns with this one]

Few inner steps of a small network on many images, so that what is kept and copied of the images shows. Memory is that
of a process above what it was before the method and the images that it begins with were made.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import ddfast
from benchmarks.measure import ROOT, described, status
from ddfast import networks
from ddfast.data import load_dataset
from ddfast.methods import METHODS, Resources
from ddfast.runtime import seeds

SGD, ADAM = {}, {"img_optimizer": "adam", "lr_img": 0.01}
ROWS = {
    "100 × 3 × 64 × 64, all in every step": ("mtt", 64, 10, SGD),
    "the same, with an average": ("ftd", 64, 10, {"ema_decay": 0.99}),
    "the same, Adam": ("mtt", 64, 10, ADAM),
    "5,000 × 3 × 32 × 32, minibatches of 32, which visit": ("mtt", 32, 500, {"batch_syn": 32}),
    "the same, with an average, which keeps all there": ("ftd", 32, 500, {"batch_syn": 32, "ema_decay": 0.99}),
    "the same, Adam and an average": ("mtt", 32, 500, ADAM | {"batch_syn": 32, "ema_decay": 0.99}),
}
STEPS, ROUNDS = 5, 3


def method(name: str, side: int, ipc: int, options: dict):
    """One of ddfast.methods on random images of ten classes."""
    images = torch.rand(10 * ipc, 3, side, side, generator=seeds.generator(0))
    labels = torch.arange(10).repeat_interleave(ipc)
    data = load_dataset((torch.utils.data.TensorDataset(images[::ipc], labels[::ipc]),) * 2)
    experts = ddfast.train_experts(data, network="convnet:width=8", num_experts=1, train_epochs=1, dsa_strategy="none")
    given = {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "lr_img": 1.0, "lr_lr": 1e-6, "lr_teacher": 0.01}
    settings = METHODS[name].Settings(**given | {"dsa_strategy": "none"} | options)
    synthetic = ddfast.SyntheticSet(images, labels, torch.tensor(0.01), data.class_names, data.preprocessing)
    network = networks.create("convnet:width=8", generator=seeds.generator(1), **data.network_arguments)
    before = status("VmRSS") - images.nbytes
    return METHODS[name](settings, synthetic, Resources(network, seeds.generator(2), experts=experts)), before


def measured(row: str) -> dict[str, float]:
    """In this process: milliseconds per step, MiB between two and at the peak, MiB of a checkpoint."""
    run, before = method(*ROWS[row])
    marked = run.step() and run.mark()  # the first step makes what the others have
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        run.step()
        marked = run.mark()  # as the outer loop does
        times.append(1000 * (time.perf_counter() - began))
    between, peak = (status(key) - before for key in ("VmRSS", "VmHWM"))
    with tempfile.TemporaryFile() as file:
        torch.save(run.state_dict(), file)
        saved = file.tell()
    del marked
    sizes = {"between": between, "peak": peak, "checkpoint": saved}
    return {"ms": min(times)} | {name: size / 2**20 for name, size in sizes.items()}


def in_a_process(row: str, checkout: str, cache: str) -> dict[str, float]:
    """The same, with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": checkout, "MALLOC_MMAP_THRESHOLD_": "65536", "DDFAST_CACHE": cache}
    code = f"import json, runpy; module = runpy.run_path({__file__!r}); print(json.dumps(module['measured']({row!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a table."""
    checkouts = [*(str(Path(other).resolve()) for other in sys.argv[1:]), str(ROOT)]
    print(described("python -m benchmarks.outer_step" + " OTHER" * len(sys.argv[1:])), "\n")
    names = ["ms per step", "MiB between steps", "MiB at the peak", "MiB of a checkpoint"]
    print("| images |", *(f"{name} |" for name in names))
    print("|---" * (len(names) + 1) + "|")
    with tempfile.TemporaryDirectory() as cache:
        for row in ROWS:
            rounds = [[in_a_process(row, checkout, cache) for checkout in checkouts] for _ in range(ROUNDS)]
            columns = [
                " → ".join(f"{statistics.median(each[i][name] for each in rounds):.4g}" for i in range(len(checkouts)))
                for name in rounds[0][0]
            ]
            print(f"| {row} |", *(f"{column} |" for column in columns), flush=True)


if __name__ == "__main__":
    main()
