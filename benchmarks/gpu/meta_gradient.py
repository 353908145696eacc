"""The meta-gradient against the eager full unroll, in pairs in one run: time, peak memory, gradients.

Of every setting: ddfast with all steps stored, the same as a CUDA graph, and recomputing everything; the eager loop
is the baseline, and as a CUDA graph a row of its own. In the default precision (TF32 in convolutions), in strict
float32, and in bfloat16, on both sides. The error is that of the image gradient against float64, with few images and
steps, the median over draws: one ReLU that switches by rounding makes it 1e-3 on either side. Beside it is how far the
gradients of both sides are apart at the size that is timed.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.bench_meta_gradient import CUDA_SETTINGS, make
from benchmarks.gpu.lines import Work
from benchmarks.gpu.timing import in_pairs, seconds_of
from benchmarks.measure import DEVICE, _measure, relative_error
from ddfast.methods.trajectory.cuda_graph import Replayed
from ddfast.ops import computing_in
from ddfast.runtime.devices import is_out_of_memory

ROWS = ("store", "graph", "recompute", "eager, graph")
PRECISIONS = ("default", "float32", "bfloat16")
TINY = {  # of a rehearsal
    "1 image × 2 steps, 32 px": {"images": 1, "steps": 2, "side": 32, "error_steps": 1},
    "1 image × 3 steps, 32 px": {"images": 1, "steps": 3, "side": 32, "error_steps": 1, "without": ("eager",)},
}
DRAWS = 3
ROUNDS, SECONDS = 5, 10.0  # of a row, at least 2 rounds
FACTOR, LEAST = 10.0, 5e-3  # an error that is more times the eager loop's, and more than a switching ReLU makes, fails


def settings(rehearse: bool) -> dict[str, dict]:
    """The rows of the table by their words: the small ones come first, and every precision of one before the next."""
    return TINY if rehearse else CUDA_SETTINGS


def variant_of(row: str, precision: str) -> str:
    """As `bench_meta_gradient.make` calls it."""
    if precision != "bfloat16":
        return row
    return "bfloat16" if row == "recompute" else f"{row}, bfloat16"


class Side:
    """One side of a comparison: its call, what a call gave, and its peak memory; or why there is none."""

    def __init__(self, row: str, precision: str, case: dict) -> None:
        variant = variant_of(row, precision)
        self.gradient, self.mib, self.why, self.seconds = [], math.nan, "", math.nan
        if DEVICE == "cuda":
            torch.cuda.empty_cache()  # memory cannot be given back while a graph is captured
        try:
            strictly(make(variant, **case, small=True), precision)()  # libraries load, and take their own memory
            made = make(variant, **case)
            self.call: Callable | None = strictly(made, precision)
            self.mib = _measure(self.call) / 2**20
            began = time.perf_counter()
            self.gradient = [g.detach().cpu() for g in self.call()[:1]]
            self.seconds = time.perf_counter() - began
            if isinstance(made, Replayed) and made._graph is None:
                raise RuntimeError("it cannot be captured as a CUDA graph, see meta_gradient.log")
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.call, self.why = None, "out of memory"


def strictly(call: Callable, precision: str) -> Callable:
    """The call without TF32 where the precision is float32, with it where it is another."""

    def run():
        with computing_in("float32" if precision == "float32" else "default"):
            return call()

    return run


@functools.cache
def exact(images: int, steps: int, side: int, seed: int) -> list[torch.Tensor]:
    """The image gradient in float64."""
    return [make("eager", images=images, steps=steps, side=side, dtype="float64", seed=seed)()[0].detach()]


@functools.cache
def error(row: str, precision: str, images: int, steps: int, side: int, draws: int) -> float:
    """Of the image gradient, the median over draws."""
    few, found = {"images": images, "steps": steps, "side": side}, []
    for seed in range(1, draws + 1):
        got = strictly(make(variant_of(row, precision), **few, seed=seed), precision)()[:1]
        found.append(relative_error(got, exact(**few, seed=seed)))
    return statistics.median(found)


def compared(row: str, precision: str, case: dict, few: dict, baseline: Side | None, work: Work) -> dict:
    """The line of a row."""
    ours = Side(row, precision, case)
    line = {"mib": ours.mib}
    if ours.call is None:
        return {"mib": None, "why": ours.why}
    both = baseline is not None and baseline.call is not None
    once = ours.seconds + (baseline.seconds if both else 0.0)
    rounds = 1 if work.rehearse else max(2, min(ROUNDS, int(SECONDS / once)))
    if both:
        line |= in_pairs(ours.call, baseline.call, rounds)
        line |= {"of_memory": ours.mib / max(baseline.mib, 1e-9)}
        line |= {"apart": relative_error(ours.gradient, baseline.gradient)}
    else:
        line |= {"ms": 1000 * statistics.median(seconds_of(ours.call, rounds))}
        line |= {"baseline_why": "not run: it would need hundreds of GiB" if baseline is None else baseline.why}
    draws = 1 if work.rehearse else DRAWS
    line |= {"error": error(row, precision, **few, draws=draws)}
    line |= {"error_of_eager": error("eager", precision, **few, draws=draws)}
    if not line["error"] <= max(FACTOR * line["error_of_eager"], LEAST):
        line["ok"] = False
        line["why"] = f"the gradient's error is {line['error']:.1e}, the eager loop's {line['error_of_eager']:.1e}"
    return line


def run(work: Work) -> None:
    """A line for every setting, precision and row; the default precision of all settings before the others."""
    for precision in PRECISIONS:
        for name, setting in settings(work.rehearse).items():
            case = {key: setting[key] for key in ("images", "steps", "side")}
            few = {"images": 10 if case["side"] == 32 else 2, "steps": setting["error_steps"], "side": case["side"]}
            few["images"] = min(few["images"], case["images"])
            baseline = None
            if "eager" not in setting.get("without", ()):
                baseline = Side("eager", precision, case)
                line = {"mib": None, "why": baseline.why} if baseline.why else {"mib": baseline.mib}
                work.lines.write(name, row="eager", precision=precision, **line)
            for row in ROWS:
                if row.endswith("graph") and DEVICE != "cuda":
                    continue
                if row.startswith("eager") and (baseline is None or 2.2 * baseline.mib * 2**20 > total_bytes()):
                    continue  # there is no memory for both
                work.lines.write(name, row=row, precision=precision, **tried(row, precision, case, few, baseline, work))
            del baseline


def total_bytes() -> int:
    """Of the GPU's memory."""
    return torch.cuda.get_device_properties(0).total_memory


def tried(row: str, precision: str, case: dict, few: dict, baseline: Side | None, work: Work) -> dict:
    """The line of a row, or of what ended it."""
    try:
        return compared(row, precision, case, few, baseline, work)
    except RuntimeError as problem:
        if is_out_of_memory(problem):
            return {"mib": None, "why": "out of memory beside the baseline"}
        return {"ok": row.startswith("eager"), "why": f"{type(problem).__name__}: {str(problem).splitlines()[0]}"}
