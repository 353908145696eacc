"""From a memory budget to a plan of an unroll: chunks of a minibatch, stored steps, kept states."""

import math
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

import torch

from ddfast.engine.students.base import StepBytes, Student
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.devices import free_bytes

LEAST_BYTES = 1000
UNKNOWN = "what a step of this network needs in this precision is not known"
SMALLEST_CHUNK = 32  # images: below, a chunk is used only where nothing else fits; devices want larger ones
UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class Plan:
    """How a CheckpointedUnroll uses memory. Every plan gives the same gradient, but for the last bits.

    micro_batch: images computed at a time, None for the whole minibatch; stored_steps: the last so many inner steps
    keep what their backward would else compute again; state_every: every so many steps θ_n is kept, those between
    are computed again; host_states: they are kept in (pinned) host memory; predicted_bytes: the peak that the planner
    expects above what was there, None where it does not know.
    """

    micro_batch: int | None = None
    stored_steps: int = 0
    state_every: int = 1
    host_states: bool = False
    predicted_bytes: int | None = None

    def __post_init__(self) -> None:
        expect_whole(state_every=self.state_every, micro_batch=1 if self.micro_batch is None else self.micro_batch)
        if isinstance(self.stored_steps, bool) or not isinstance(self.stored_steps, int) or self.stored_steps < 0:
            raise ValueError(f"stored_steps: expected a whole number of at least 0, got {self.stored_steps!r}")

    def words(self, size: "UnrollSize") -> str:
        """For people."""
        chunks = f"{self.micro_batch or size.batch[0]} of {size.batch[0]} images at a time"
        stored = f"{self.stored_steps} of {size.syn_steps} steps stored"
        states = "" if self.state_every == 1 else f", every {self.state_every}th state kept"
        states += ", states in host memory" if self.host_states else ""
        peak = "" if self.predicted_bytes is None else f", {self.predicted_bytes / 2**20:.0f} MiB for an outer step"
        return f"{chunks}, {stored}{states}{peak}"


@dataclass(frozen=True)
class UnrollSize:
    """What the memory of an unroll depends on, besides the student."""

    syn_steps: int  # T
    batch: torch.Size  # [B, C, H, W], a minibatch
    num_images: int  # I
    students: int = 1  # S
    dtype: torch.dtype = torch.float32
    return_states: bool = False
    momentum: bool = False
    on_gpu: bool = False
    moments: int | None = None  # how many the adjoint keeps beside gradients; None: it keeps parameters alone

    def words(self) -> str:
        """For people."""
        B, *shape = self.batch
        students = f", {self.students} students" if self.students > 1 else ""
        return f"{B} images of {' × '.join(map(str, shape))} × {self.syn_steps} steps{students}"


class BudgetTooSmallError(ValueError):
    """Nothing fits a budget."""

    def __init__(self, budget: int, smallest: int) -> None:
        super().__init__(
            f"memory_budget: {_mebibytes(budget)} is too little for this unroll; the smallest that does is "
            f"{math.ceil(smallest / 2**20)} MiB"
        )
        self.smallest = smallest  # bytes


def parse_budget(budget: int | float | str, device: torch.device, sharers: int = 1) -> int:
    """Bytes of a budget: bytes, a size ("4GiB", "500MB"), or a fraction of what the device has free (0.5, "50%"),
    of which each of `sharers` processes has its part.

    ValueError for anything else.
    """
    expected = "bytes, a size like 4GiB or 500MB, or a share of what is free like 0.5 or 50%"
    problem = ValueError(f"memory_budget: expected {expected}, got {budget!r}")
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kKMGT]?i?B?|%)\s*", budget)
        try:
            number = float(match.group(1))
            if match.group(2) == "%" and number > 100:
                raise ValueError
            if match.group(2) == "%":
                budget = number / 100
            else:
                budget = number if not match.group(2) and number <= 1 else int(number * UNITS[match.group(2)])
        except (AttributeError, KeyError, ValueError, OverflowError):
            raise problem from None
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < math.inf:
        raise problem
    if isinstance(budget, float) and budget <= 1:
        return int(budget * free_bytes(device) / sharers)
    if budget < LEAST_BYTES:  # a share above 1, or 4 for 4GiB
        raise problem
    return int(budget)


def predict(student: Student, size: UnrollSize, plan: Plan) -> int | None:
    """The peak of the unroll and its backward under a plan, in bytes above what was there; None if the student does not
    say what a step needs."""
    chunk = plan.micro_batch or size.batch[0]
    step = _step_bytes(student, size, min(chunk, size.batch[0]))
    if step is None:
        return None
    kept = step.kept * size.batch[0] / chunk  # of a whole minibatch
    states, vector, fixed = _state_bytes(student, size, plan)
    T, stored = size.syn_steps, min(plan.stored_steps, size.syn_steps)
    at_the_turn = stored * kept + (step.grad_jvp_of_kept if stored else step.grad_jvp)
    later = step.grad_jvp if stored < T else 0
    working = max(at_the_turn, later, stored * kept + step.grad)
    # λ, and σ where it is another, beside a step's own tensors; λ's update after it needs four in all
    cotangents = (2 if size.momentum else 1) if size.moments is None else 2 + size.moments
    return int(states + fixed + max(working + cotangents * vector, (4 if size.moments is None else 10) * vector))


def _step_bytes(student: Student, size: UnrollSize, images: int) -> StepBytes | None:
    """Of a step on so many images."""
    return student.step_bytes(torch.Size((images, *size.batch[1:])), size.students, size.dtype, size.on_gpu)


def _state_bytes(student: Student, size: UnrollSize, plan: Plan) -> tuple[int, int, int]:
    """Of all kept states, of one parameter vector, and of what every plan needs."""
    element = torch.empty((), dtype=size.dtype).element_size()
    vector = size.students * student.num_parameters * element
    T, k = size.syn_steps, plan.state_every
    if size.moments is not None:
        count = _with_moments(T, k, size.moments, plan.host_states) + (T + 1 if size.return_states else 0)
    elif plan.host_states:
        count = 1
    else:
        count = T + 1 if size.return_states else T if k == 1 else math.ceil(T / k) * (2 if size.momentum else 1) + k
    image = math.prod(size.batch[1:]) * element
    # dX and its step's part; x_n and A_n's graph; θ_T, λ at the start
    return count * vector, vector, 2 * size.num_images * image + 2 * size.batch[0] * image + 2 * vector


def _with_moments(T: int, k: int, moments: int, host_states: bool) -> int:
    """How many parameter vectors an adjoint that keeps moments has on the device."""
    every = moments_every(T) if k == 1 else k
    segment = every * (2 + moments)  # θ_n, g_n and the moments after each step, made again
    return segment if host_states else segment + math.ceil(T / every) * (1 + moments) + (T if k == 1 else 0)


def moments_every(T: int) -> int:
    """Of how many steps the first one's parameters and moments are kept, where gradients are."""
    return max(1, round(math.sqrt(T)))


def students_within(student: Student, images: torch.Size, budget: int, on_gpu: bool) -> int:
    """How many students, each with a minibatch [B, C, H, W] of its own, a budget in bytes holds in a gradient and its
    directional derivative; at least one, and one of students that cannot say."""
    one = student.step_bytes(images, 1, torch.float32, on_gpu)
    return 1 if one is None else max(1, budget // max(one.grad + one.kept, one.kept + one.grad_jvp_of_kept))


def make_plan(student: Student, size: UnrollSize, budget: int) -> Plan:
    """The plan of least work that is predicted to fit: as many stored steps as possible, in chunks as large as that
    allows. Where nothing fits, kept states go to host memory on a GPU, and are thinned out on a CPU.

    Errors: BudgetTooSmallError, a ValueError, where nothing fits, with the smallest budget that does; ValueError where
    it is not known what a step needs.
    """
    B, T = size.batch[0], size.syn_steps
    if _step_bytes(student, size, B) is None:
        raise ValueError(f"memory_budget: {UNKNOWN}")
    whole = student.why_no_micro_batches(size.batch) is not None
    chunks = [B] if whole else sorted({-(-B // n) for n in range(1, B + 1)}, reverse=True)
    elsewhere = size.on_gpu and not size.return_states

    def plans(chunk: int, every: range, host_states: bool) -> list[Plan]:
        micro_batch = None if chunk == B else chunk
        return [_predicted(student, size, Plan(micro_batch, 0, k, host_states)) for k in every]

    def fitting(every: range, host_states: bool) -> int:  # the first of the chunks with which a plan does
        def fits(chunk: int) -> bool:
            return min(plan.predicted_bytes for plan in plans(chunk, every, host_states)) <= budget

        return bisect_left(chunks, True, key=fits)

    for host_states in (False, True) if elsewhere else (False,):
        first = fitting(range(1, 2), host_states)
        if first < len(chunks):
            return _with_most_stored(student, size, chunks[first:], budget, host_states)
    every = range(1, 2) if elsewhere or size.return_states else range(1, math.isqrt(T) + 2)  # beyond, more is kept
    first = fitting(every, elsewhere)
    if first == len(chunks):
        raise BudgetTooSmallError(budget, min(p.predicted_bytes for p in plans(chunks[-1], every, elsewhere)))
    return next(plan for plan in plans(chunks[first], every, elsewhere) if plan.predicted_bytes <= budget)


def _with_most_stored(student: Student, size: UnrollSize, chunks: list[int], budget: int, host_states: bool) -> Plan:
    """The plan with the most stored steps, in the largest chunks that allow as many; none fit with all the chunks."""
    B, T, best = size.batch[0], size.syn_steps, None
    for chunk in chunks:
        if best is not None and (best.stored_steps == T or chunk < SMALLEST_CHUNK):
            break
        micro_batch = None if chunk == B else chunk
        step: StepBytes = _step_bytes(student, size, chunk)
        if not step.kept:
            return _predicted(student, size, Plan(micro_batch, host_states=host_states))
        plans = [Plan(micro_batch, stored, host_states=host_states) for stored in range(T + 1)]
        fitting = bisect_right(plans, budget, key=lambda plan: predict(student, size, plan))
        if best is None or plans[fitting - 1].stored_steps > best.stored_steps:
            best = plans[fitting - 1]
    return _predicted(student, size, best)


def _predicted(student: Student, size: UnrollSize, plan: Plan) -> Plan:
    return replace(plan, predicted_bytes=predict(student, size, plan))


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**20:.3g} MiB"
