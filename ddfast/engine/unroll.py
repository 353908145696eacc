"""One pure iteration of trajectory matching: unroll a student on the synthetic set, compare it with the expert."""

import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ddfast.engine.adjoints import Adjoint, CheckpointedUnroll, FullUnroll
from ddfast.engine.distances import DISTANCES
from ddfast.engine.distances import distance as distance_between
from ddfast.engine.inner_loop import Augment, Unroll
from ddfast.engine.optimizers import SGD, Optimizer, OptimizerState
from ddfast.engine.students import (
    ModuleStudent,
    RecognisedStudent,
    Student,
    student_of,
    unwrapped,
    why_not_fused,
)
from ddfast.engine.students.base import layer_sizes
from ddfast.networks import ConvNet
from ddfast.ops import expect_tensors
from ddfast.runtime.arguments import expect_one_of, takes_plain_values

log = logging.getLogger("ddfast")
_logged: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()  # a loop calls with one network many times


def _outside_inference_mode(function: Callable) -> Callable:
    """Have a function run without inference mode, on ordinary tensors: in it no step could be differentiated."""

    def ordinary(value: Any) -> Any:
        if isinstance(value, OptimizerState):
            return value._replace(moments=tuple(map(ordinary, value.moments)))
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return called(*arguments, **options)
        return function(*map(ordinary, arguments), **{name: ordinary(value) for name, value in options.items()})

    return called


@_outside_inference_mode
@takes_plain_values
def unroll(
    student: Student | nn.Module,
    start: Tensor,  # [P] or [S, P]
    images: Tensor,  # [I, C, H, W]
    labels: Tensor,  # int64 [I], or target weights [I, K]
    lr: Tensor,  # [] or [T]
    *,
    batches: Tensor | Iterable[Tensor] | None = None,  # int64 [T, B], or T of [B_n]
    syn_steps: int | None = None,
    augment: Augment | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    optimizer: Optimizer | None = None,
    state: OptimizerState | None = None,
    detached_steps: int = 0,
    adjoint: Adjoint | None = None,
    return_states: bool = False,
    return_optimizer_state: bool = False,
) -> Any:  # [P] or [S, P]; with return_states [T + 1, P] or [T + 1, S, P]; with return_optimizer_state also the state
    """Train a student on the synthetic set for T steps; differentiable in images, soft labels, lr, start and state.

        g_n = ∇_θ ℓ(θ_n; A_n(X[b_n]), Y[b_n]),  v_{n+1} = μ v_n + g_n + w θ_n,  θ_{n+1} = θ_n − α v_{n+1}

    with ℓ the mean cross-entropy (Algorithm 1 of MTT, Cazenavette et al. 2022), or by another optimizer. Any loss of
    the result may follow: of the parameters, or `data_loss` of what they do to real images.

    Args:
        student: an nn.Module, used in the train or eval mode that it is in, or a Student. Its flat parameters are those
            of `module.parameters()`, in that order (torch.nn.utils.parameters_to_vector). The usual ConvNet runs on the
            fused ops, save under autocast and FullUnroll; any other module by autograd, compiled ones as they were
            before. Of a wrapped one (DataParallel, ReparamModule, …; students.unwrapped) it is the network inside.
        start: θ_0; with [S, P], S students are trained side by side on the same images.
        images: the synthetic set, I images.
        labels: classes, or target weights per class; softmax of label logits is the caller's. Weights need not sum to
            1 (learned ones do not stay there): an image's loss is scaled by their sum, and a warning says so once.
        lr: α, one or one per step; a plain number is a constant.
        batches: the minibatches, indices into images; images may be repeated and left out. Those of different sizes,
            such as torch.split gives, are a list of index tensors.
        syn_steps: T, for all images in every step. Exactly one of batches and syn_steps is given.
        augment: A(images, n), differentiable, and the same for the same step n, for the backward calls it again: what
            data.DSA.draw_steps gives, data.SeededAugment of any random function, or one whose draws n seeds. One that
            gives other images in the backward raises a ValueError there.
        momentum, weight_decay: of SGD, where no optimizer is given.
        optimizer: one of ddfast.optimizers, Adam() for instance; its moments are differentiated through.
        state: the optimizer's at θ_0, from an earlier call; None: moments of 0, and no steps made.
        detached_steps: so many steps come first that nothing is differentiated through, as in truncated BPTT: the
            result does not depend on start and state, and on images, labels and lr through the other steps only.
        adjoint: how the gradient is formed; CheckpointedUnroll() where None.
        return_states: return θ_0 … θ_T instead of θ_T; of detached steps the last one's result only.
        return_optimizer_state: return (θ_T, the optimizer's state there), both differentiable.

    Under no_grad or inference_mode, and where no argument requires a gradient, no states are kept: memory does not grow
    with the steps.

    Values of tensors are not looked at, for that would wait for the device: a NaN or inf in one of them, or an
    overflow, comes out as NaN or inf.

    Errors: ValueError or TypeError naming the argument, what was expected and what came.
    """
    adjoint = CheckpointedUnroll() if adjoint is None else adjoint
    if not isinstance(adjoint, Adjoint):
        raise TypeError(f"adjoint: expected an instance of a class of ddfast.adjoints, got {adjoint!r}")
    expect_tensors(start=start)
    if isinstance(student, nn.Module):
        _refuse_unpadded(unwrapped(student), start)
        student = ModuleStudent(student) if isinstance(adjoint, FullUnroll) else _student_of(student, start, images)
    elif not isinstance(student, Student):
        raise TypeError(f"student: expected an nn.Module or a Student, got {type(student).__name__}")
    if isinstance(lr, int | float):
        if not math.isfinite(lr):
            raise ValueError(f"lr: expected a finite number, got {lr}")
        lr = torch.as_tensor(lr, dtype=start.dtype, device=start.device)
    _check_tensors(student, start, images, labels, lr)
    batches = _minibatches(batches, images)
    syn_steps = _check_steps(batches, syn_steps, lr)
    if augment is not None and not callable(augment):
        raise TypeError(f"augment: expected a function of images and the step's number, got {augment!r}")
    optimizer = _optimizer(optimizer, momentum, weight_decay)
    theta, (moments, first) = start.reshape(-1, start.shape[-1]), _begin(optimizer, state, start)
    plan = Unroll(student, syn_steps, batches, augment, optimizer, return_states, first)
    if detached_steps:
        _expect_detached(detached_steps, syn_steps)
        before = replace(plan.part(0, detached_steps), return_states=False)
        rates = (lr, lr) if lr.dim() == 0 else (lr[:detached_steps], lr[detached_steps:])
        with torch.no_grad():
            theta, moments = adjoint(before, theta.detach(), images, labels, rates[0], moments, True)
        plan, lr = plan.part(detached_steps, syn_steps), rates[1]
    with_moments = state is not None or detached_steps > 0 or return_optimizer_state
    states, moments = adjoint(plan, theta, images, labels, lr, moments, with_moments)
    alone = start.dim() == 1
    states = states.squeeze(-2) if alone else states
    if not return_optimizer_state:
        return states
    moments = tuple(moment.squeeze(-2) if alone else moment for moment in moments)
    return states, OptimizerState(moments, first + syn_steps)


@_outside_inference_mode
@takes_plain_values
def match_trajectory(
    student: Student | nn.Module,
    start: Tensor,  # [P] or [S, P]: θ*_t
    target: Tensor,  # like start: θ*_{t+M}
    images: Tensor,  # [I, C, H, W]
    labels: Tensor,  # int64 [I], or target weights [I, K]
    lr: Tensor,  # [] or [T]
    *,
    distance: str = "squared",
    weight: Tensor | None = None,  # [P], or like start
    **options: Any,
) -> Tensor:  # [] or [S]
    """The matching loss of MTT (eq. 2): ‖θ_T − θ*_{t+M}‖² / ‖θ*_t − θ*_{t+M}‖², with θ_T unrolled from θ*_t.

    distance: another of ddfast.engine.distances.DISTANCES; weight: of the parameters in it. The other options,
    derivatives and errors are those of `unroll`, save return_states and return_optimizer_state. ValueError for a start
    that equals its target; on a device, where looking would mean waiting, it gives inf or nan.
    """
    for name in ("return_states", "return_optimizer_state"):
        if name in options:
            raise TypeError(f"match_trajectory: {name} is not an option here; use unroll and ops.param_distance")
    expect_tensors(start=start, target=target)
    if target.shape != start.shape:
        raise ValueError(
            f"start, target: expected the same shape, [P] or [S, P], got {list(start.shape)} and {list(target.shape)}"
        )
    if start.device.type == "cpu" and bool((start == target).all(-1).any()):
        raise ValueError("start, target: expected an expert's parameters at two different epochs, got the same twice")
    expect_one_of("distance", distance, DISTANCES)
    last, layers = unroll(student, start, images, labels, lr, **options), None
    if distance == "layerwise":
        layers = layer_sizes(unwrapped(student)) if isinstance(student, nn.Module) else student.layer_sizes
    return distance_between(last, target, start, distance, weight=weight, layers=layers)


def _student_of(network: nn.Module, start: Tensor, images: Tensor) -> Student:
    """student_of, with one line for each network that is no ddfast ConvNet: how it runs, and why."""
    bare = unwrapped(network)
    if start.device.type != "meta" and torch.is_autocast_enabled(start.device.type):
        student, line = ModuleStudent(bare), "runs by autograd: autocast is on"
    else:
        image = images.shape[1:] if isinstance(images, Tensor) and images.dim() == 4 and images.numel() else None
        student, reason = student_of(bare, image=image), why_not_fused(bare)
        line = None if reason is None else f"runs by autograd: {reason}"
    if isinstance(student, RecognisedStudent):
        line = "runs on the fused ops: it is the field's ConvNet"
    if line is not None and _logged.get(network) != line:
        log.info("%s %s", type(bare).__name__, line)
    _logged[network] = line
    return student


def _refuse_unpadded(network: nn.Module, start: Tensor) -> None:
    """ValueError that says what to give for parameters of the field's ConvNet for 28-px images."""
    if not isinstance(network, ConvNet) or not isinstance(network.classifier, nn.Linear) or start.dim() == 0:
        return
    P, linear = sum(parameter.numel() for parameter in network.parameters()), network.classifier
    more, rest = divmod(start.shape[-1] - P, linear.out_features)
    advice = "" if rest else network.padding_advice(linear.in_features + more)
    if advice:
        raise ValueError(f"start: expected [P] or [S, P] with P = {P}, got {list(start.shape)}. {advice}")


def _check_tensors(student: Student, start: Tensor, images: Tensor, labels: Tensor, lr: Tensor) -> None:
    soft = {"labels": labels} if isinstance(labels, Tensor) and labels.is_floating_point() else {}
    expect_tensors(start=start, images=images, lr=lr, **soft)
    P = student.num_parameters
    if start.dim() not in (1, 2) or start.shape[-1] != P or start.numel() == 0:
        raise ValueError(f"start: expected [P] or [S, P] with P = {P}, got {list(start.shape)}")
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(f"images: expected [I, C, H, W], got {list(images.shape)}")
    if not isinstance(labels, Tensor) or not (soft or labels.dtype == torch.int64):
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: expected int64 [I] or target weights [I, K], got {kind}")
    if labels.device != images.device:
        raise ValueError(f"labels: expected device {images.device} like images, got {labels.device}")
    if soft and labels.device.type == "cpu" and bool((labels < 0).any()):  # elsewhere: a wait
        raise ValueError("labels: expected target weights of at least 0, got negative ones; of logits give .softmax(1)")
    if soft and labels.device.type == "cpu" and labels.dim() == 2:
        _warn_of_sums(labels.detach().sum(1))
    if labels.dim() != (2 if soft else 1) or len(labels) != len(images):
        expected = f"[{len(images)}, K]" if soft else f"[{len(images)}]"
        raise ValueError(f"labels: expected {expected} for {len(images)} images, got {list(labels.shape)}")


def _warn_of_sums(sums: Tensor) -> None:  # [I], of target weights
    if ((sums - 1).abs() > 0.01).any():
        warnings.warn(
            f"labels: target weights sum to {float(sums.min()):.3g} to {float(sums.max()):.3g} per image, not to 1: "
            "each image's loss is scaled by its sum; of logits give .softmax(1)",
            stacklevel=6,  # the caller of unroll
        )


def _minibatches(batches: Any, images: Tensor) -> Tensor | tuple[Tensor, ...] | None:
    """Copies of the index tensors, which the backward reads again: one [T, B] where they are of one size."""
    if batches is None:
        return None
    if not isinstance(batches, Tensor):
        if isinstance(batches, str | dict) or not isinstance(batches, Iterable):
            raise TypeError(f"batches: expected int64 [T, B], or a list of int64 [B], got {type(batches).__name__}")
        rows = tuple(_row(row, n, images) for n, row in enumerate(batches))
        if len({len(row) for row in rows}) > 1:
            return rows
        batches = torch.stack(rows) if rows else torch.empty(0, 0, dtype=torch.int64)
    if batches.dtype != torch.int64:
        raise TypeError(f"batches: expected an int64 tensor, got {batches.dtype}")
    if batches.dim() != 2 or batches.numel() == 0:
        raise ValueError(f"batches: expected [T, B], got {list(batches.shape)}")
    _check_indices("batches", batches, images)
    return batches.clone()


def _row(row: Any, n: int, images: Tensor) -> Tensor:  # int64 [B]
    """A copy of the indices of step n, which may also be a list of whole numbers or an array of them."""
    given = row
    if not isinstance(row, Tensor):
        try:
            row = torch.as_tensor(row, device=images.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"batches[{n}]: expected int64 [B], got {type(given).__name__}") from None
        row = row if row.is_floating_point() or row.dtype == torch.bool else row.long()
    if row.dim() != 1 or len(row) == 0:
        raise ValueError(f"batches[{n}]: expected [B] with at least one index, got {list(row.shape)}")
    if row.dtype != torch.int64:
        raise TypeError(f"batches[{n}]: expected an int64 tensor, got {row.dtype}")
    _check_indices(f"batches[{n}]", row, images)
    return row.clone()


def _check_indices(name: str, indices: Tensor, images: Tensor) -> None:
    if indices.device.type == "cpu" and not 0 <= int(indices.min()) <= int(indices.max()) < len(images):
        raise ValueError(
            f"{name}: expected indices 0 to {len(images) - 1}, got {int(indices.min())} to {int(indices.max())}"
        )


def _check_steps(batches: Tensor | tuple[Tensor, ...] | None, syn_steps: int | None, lr: Tensor) -> int:
    """The number of steps, T, once batches, syn_steps and lr are known to agree."""
    if (batches is None) == (syn_steps is None):
        given = "neither" if batches is None else "both"
        raise ValueError(f"batches, syn_steps: expected exactly one of them, got {given}")
    if batches is not None:
        syn_steps = len(batches)
    if isinstance(syn_steps, bool) or not isinstance(syn_steps, int) or syn_steps < 1:
        raise ValueError(f"syn_steps: expected a whole number of at least 1, got {syn_steps!r}")
    if lr.dim() > 1 or (lr.dim() == 1 and len(lr) != syn_steps):
        raise ValueError(f"lr: expected [] or [T] with T = {syn_steps}, got {list(lr.shape)}")
    return syn_steps


def _expect_detached(detached_steps: Any, syn_steps: int) -> None:
    if isinstance(detached_steps, bool) or not isinstance(detached_steps, int):
        raise TypeError(f"detached_steps: expected a whole number, got {detached_steps!r}")
    if not 0 < detached_steps < syn_steps:
        raise ValueError(f"detached_steps: expected 0 to {syn_steps - 1} of {syn_steps} steps, got {detached_steps}")


def _optimizer(optimizer: Optimizer | None, momentum: float, weight_decay: float) -> Optimizer:
    if optimizer is None:
        return SGD(momentum, weight_decay)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected one of ddfast.optimizers, as Adam(), got {optimizer!r}")
    if momentum or weight_decay:
        raise ValueError("momentum, weight_decay: those of an optimizer are its own; expected 0 beside one")
    return optimizer


def _begin(optimizer: Optimizer, state: OptimizerState | None, start: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """The moments at θ_0 [S, P], and how many steps were made before."""
    if state is None:
        return optimizer.begin(start.detach().reshape(-1, start.shape[-1])), 0
    if not isinstance(state, OptimizerState):
        raise TypeError(f"state: expected an optimizers.OptimizerState, got {type(state).__name__}")
    moments, steps = state
    if len(moments) != optimizer.num_moments:
        kind = type(optimizer).__name__
        raise ValueError(f"state: expected {optimizer.num_moments} moments for {kind}, got {len(moments)}")
    expect_tensors(start=start, **{f"state.moments[{i}]": moment for i, moment in enumerate(moments)})
    for i, moment in enumerate(moments):
        if moment.shape != start.shape:
            raise ValueError(f"state.moments[{i}]: expected {list(start.shape)} like start, got {list(moment.shape)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"state.steps: expected a whole number of at least 0, got {steps!r}")
    return tuple(moment.reshape(-1, start.shape[-1]) for moment in moments), steps
