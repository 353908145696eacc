"""The training of five evaluation networks on 10 images: side by side, and one after another."""

from benchmarks.bench_evaluate import ROWS, make
from benchmarks.gpu.lines import Work
from benchmarks.gpu.timing import in_pairs
from benchmarks.measure import relative_error

CASE = {"networks": 5, "images": 10, "side": 32, "epochs": 200}
TINY = {"networks": 2, "images": 2, "side": 32, "epochs": 1}
FACTOR, LEAST = 10.0, 5e-3


def run(work: Work) -> None:
    """A line for ours against PyTorch's layers, and one for side by side against one after another."""
    case, rounds = (TINY, 1) if work.rehearse else (CASE, 3)
    few = TINY | {"small": True}
    exact = make("eager", **few, dtype="float64")()
    errors = {variant: relative_error(make(variant, **few)(), exact) for variant in ROWS}
    for variant, against in (("together", "eager"), ("alone", "eager"), ("together", "alone")):
        times = in_pairs(make(variant, **case), make(against, **case), rounds)
        ok = errors[variant] <= max(FACTOR * errors["eager"], LEAST)
        why = {} if ok else {"why": f"the error is {errors[variant]:.1e}, the eager networks' {errors['eager']:.1e}"}
        words = {"row": ROWS[variant], "against": ROWS[against], "epochs": case["epochs"]}
        error = {"error": errors[variant], "error_of_eager": errors["eager"]}
        work.lines.write("evaluation", ok=ok, **words, **times, **error, **why)
