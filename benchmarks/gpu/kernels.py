"""Every op at real sizes: time, bytes per second, arithmetic per second, and shares of the device's peak.

Bytes are those of all arguments and results, once. The peak of memory is the maker's figure where the GPU is known,
and what a copy reaches on it beside that; of arithmetic it is a large product of matrices in the same precision. The
prediction is that of results/predicted-sm_90.md: bytes over the maker's figure. A call is timed with cold caches, and
contains the gaps between the kernels that it launches.
"""

import re
import statistics

import torch

from benchmarks.gpu.cases import Case, all_cases, tensors_of
from benchmarks.gpu.lines import Work
from benchmarks.gpu.timing import seconds_of
from benchmarks.measure import DEVICE, ROOT
from benchmarks.predicted import SPEEDS
from ddfast.ops import computing_in

ROUNDS = 20
BYTES, SIDE = 2**30, 8192  # of the copy, of the matrices
TYPES = {"float32": torch.float32, "default": torch.float32, "bfloat16": torch.bfloat16}


def bandwidth(rehearse: bool) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros((2**20 if rehearse else BYTES) // 4, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(seconds_of(lambda: target.copy_(source), ROUNDS))


def matrix_rate(precision: str, rehearse: bool) -> float:
    """Floating-point operations per second of a product; "default": in TF32, as convolutions are by default."""
    side = 64 if rehearse else SIDE
    a, b = (torch.randn(side, side, device=DEVICE, dtype=TYPES[precision]) for _ in range(2))
    setting, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    with computing_in("float32" if precision == "float32" else "default"):
        if precision == "default":
            setting.fp32_precision = "tf32"
        try:
            return 2 * side**3 / statistics.median(seconds_of(lambda: a @ b, ROUNDS // 2))
        finally:
            if precision == "default":
                setting.fp32_precision = before


def makers_speed() -> tuple[str, float] | None:
    """The GPU that is there, of those that a prediction is of, and its bytes per second."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else ""
    return next(((gpu, speed) for gpu, speed in SPEEDS.items() if gpu in name and "PCIe" not in name), None)


def predictions() -> dict[tuple[str, str], list[float]]:
    """Microseconds by kernel and maps, in the order of SPEEDS."""
    found = {}
    for row in (ROOT / "benchmarks" / "results" / "predicted-sm_90.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 10 and re.fullmatch(r"[\d.]+", cells[-1]):
            found[cells[0].partition(",")[0], cells[1]] = [float(cell) for cell in cells[-len(SPEEDS) :]]
    return found


def predicted(case: Case, table: dict[tuple[str, str], list[float]], gpu: str | None) -> float | None:
    """Microseconds of all kernels of a case on a GPU; None where one is not in the table."""
    times = [table.get((kernel, case.size)) for kernel in case.predicted]
    if gpu is None or not times or None in times:
        return None
    return sum(of[list(SPEEDS).index(gpu)] for of in times)


def run(work: Work) -> None:
    """A line of the device, and one for every op."""
    copied, rates = bandwidth(work.rehearse), {name: matrix_rate(name, work.rehearse) for name in TYPES}
    known, table = makers_speed(), predictions()
    work.lines.write("device", bytes_per_second=copied, flops_per_second=rates, maker=known)
    for case in all_cases(small=work.rehearse):
        with computing_in("float32" if case.precision == "float32" else "default"):
            arguments = case.arguments(1)
            moved = sum(tensor.nbytes for tensor in tensors_of([arguments, case(arguments)]))
            rounds = 3 if work.rehearse else ROUNDS
            seconds = statistics.median(seconds_of(lambda: case(arguments), rounds, cold=True))  # noqa: B023
        line = {"size": case.size, "precision": case.precision, "us": 1e6 * seconds, "bytes": moved}
        line |= {"bytes_per_second": moved / seconds, "of_copy": moved / seconds / copied}
        if known is not None:
            line["of_peak"] = moved / seconds / known[1]
            line["predicted_us"] = predicted(case, table, known[0])
        if case.flops:
            line |= {
                "flops_per_second": case.flops / seconds,
                "of_matrices": case.flops / seconds / rates[case.precision],
            }
        work.lines.write(case.op, **line)
