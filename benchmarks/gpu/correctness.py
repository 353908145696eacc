"""Every op with a kernel at real sizes against its reference in float64 on the same device.

The error is ‖got − exact‖ / ‖exact‖ of the worst result, the median over draws. Beside it that of the reference in the
precision of the kernel: a kernel passes with up to FACTOR times as much, or with FLOOR. Where a ReLU switches by
rounding, one element of a map is another number, which the norm of a large map shows: so the REST is bounded as
well, without the one in 10,000 elements that are furthest off, and the norm by SWITCHES.
"""

import statistics

import torch

from benchmarks.gpu.cases import Case, all_cases, tensors_of
from benchmarks.gpu.lines import Work
from benchmarks.measure import DEVICE
from ddfast.ops import computing_in, has_kernel, op_names, reference_mode

DRAWS = 3
FACTOR, FLOOR, SWITCHES, OUTLIERS = 4.0, 2e-6, 5e-3, 1e-4


def errors(case: Case, seed: int) -> tuple[list[float], list[float]]:
    """Norm and rest of the errors of the kernel, and of the reference."""
    with computing_in("float32" if case.precision == "float32" else "default"):
        arguments = case.arguments(seed)
        got = tensors_of(case(arguments))
        with reference_mode():
            usual, exact = tensors_of(case(arguments)), tensors_of(case(case.exact(arguments)))
    return worst(got, exact), worst(usual, exact)


def worst(got: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    """The largest of the tensors' errors, with and without the elements that are furthest off."""
    found = [[0.0, 0.0]]
    for g, e in zip(got, exact, strict=True):
        if g.shape != e.shape:
            raise ValueError(f"expected a result {list(e.shape)}, got {list(g.shape)}")
        size = e.double().square().sum().clamp_min(1e-300)
        off = (g.double() - e.double()).square().flatten()
        outliers = int(OUTLIERS * off.numel())
        furthest = off.topk(outliers).values.sum() if outliers else 0.0
        found.append([(total / size).sqrt().item() for total in (off.sum(), (off.sum() - furthest).clamp_min(0))])
    return [max(of, key=lambda x: (x != x, x)) for of in zip(*found, strict=True)]  # a NaN is the largest


def judged(case: Case, draws: int) -> dict:
    """The line of a case."""
    both = [errors(case, seed) for seed in range(1, draws + 1)]
    error, rest, usual, usual_rest = (
        statistics.median(pair[who][which] for pair in both) for who in (0, 1) for which in (0, 1)
    )
    within = error <= max(FACTOR * usual, FLOOR)
    rest_within = rest <= max(FACTOR * usual_rest, FLOOR)
    ok = within or (error <= SWITCHES and (rest_within or case.propagates))
    line = {"ok": ok, "error": error, "rest": rest, "of_reference": usual, "rest_of_reference": usual_rest}
    if not ok:
        line["why"] = f"an error of {error:.1e} where the reference in the same precision has {usual:.1e}"
    return line


def run(work: Work) -> None:
    """A line per op, size and precision."""
    cases = all_cases(small=work.rehearse)
    without = {name for name in op_names() if has_kernel(name, DEVICE)} - {case.op for case in cases}
    if without:
        work.lines.write("all ops", ok=False, why=f"no case of {', '.join(sorted(without))}")
    for case in cases:
        if not has_kernel(case.op, DEVICE):
            work.lines.write(case.op, ok=False, size=case.size, why=f"no {DEVICE} kernel")
            continue
        try:
            line = judged(case, 1 if work.rehearse else DRAWS)
        except (RuntimeError, ValueError) as error:
            line = {"ok": False, "why": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        work.lines.write(case.op, size=case.size, precision=case.precision, **line)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
