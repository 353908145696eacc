"""Steps of experts side by side, on minibatches of 256 with DSA, against PyTorch's layers one after another.

"hours": what 100 experts of 50 epochs of CIFAR-10 would take at that rate, not what they took.
"""

from benchmarks.bench_experts import make
from benchmarks.gpu.lines import Work
from benchmarks.gpu.timing import in_pairs
from benchmarks.measure import relative_error
from ddfast.runtime.devices import is_out_of_memory

NETWORKS, BATCH, SIDE = (1, 5, 25, 50), 256, 32
STEPS = 100 * 50 * -(-50_000 // BATCH)
FACTOR, LEAST = 10.0, 5e-3


def run(work: Work) -> None:
    """A line per number of networks, and one for one network after another."""
    batch, rounds = (4, 1) if work.rehearse else (BATCH, 5)
    few = {"batch": batch if work.rehearse else 8, "side": SIDE, "networks": 2, "small": True}
    exact = make("eager", **few, dtype="float64")()
    usual, got = (relative_error(make(variant, **few)(), exact) for variant in ("eager", "ddfast"))
    ok = got <= max(FACTOR * usual, LEAST)
    why = {} if ok else {"why": f"the gradients' error is {got:.1e}, the eager networks' {usual:.1e}"}
    work.lines.write("gradients", ok=ok, error=got, error_of_eager=usual, **why)
    for networks in (1, 2) if work.rehearse else NETWORKS:
        case = {"batch": batch, "side": SIDE, "networks": networks}
        for variant in ("ddfast", "ddfast, one by one") if networks == 5 else ("ddfast",):
            words = {"networks": networks, "batch": batch, "error": got}
            try:
                times = in_pairs(make(variant, **case), make("eager", **case), rounds)
            except RuntimeError as problem:
                if not is_out_of_memory(problem):
                    raise
                work.lines.write(variant, **words, why="out of memory")
                continue
            hours = times["ms"] / 1000 / networks * STEPS / 3600
            work.lines.write(variant, **words, hours=hours, **times)
