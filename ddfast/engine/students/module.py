"""Any nn.Module as a student: gradients by autograd, directional derivatives by one double backward of one step."""

import contextlib
import copy
import sys
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from ddfast.engine.students.base import GradientJvp, Step, StepBytes, Student, Wanted, check_labels, layer_sizes
from ddfast.engine.students.live import LiveBytes
from ddfast.engine.students.replay import Replay
from ddfast.engine.students.wrappers import unwrapped
from ddfast.ops import computing_in, expect_precision

# What was found out about modules: it outlives the students that calls make of them.
_sizes: weakref.WeakKeyDictionary[nn.Module, dict[tuple, StepBytes | None]] = weakref.WeakKeyDictionary()
_mixing: weakref.WeakKeyDictionary[nn.Module, dict[tuple, str | None]] = weakref.WeakKeyDictionary()


class _Graph(NamedTuple):
    """A gradient and what it was computed from."""

    loss: Tensor  # []
    pieces: list[Tensor]  # of θ, by parameter
    images: Tensor  # [B, C, H, W]
    labels: Tensor  # int64 [B], or target weights [B, K]
    gradients: list[Tensor]  # by parameter


class ModuleStudent(Student):
    """A network whose flat parameters [P] are those of `module.parameters()`, in that order.

    The module's own parameters are never read; frozen ones count too, tied ones once. It is used in the mode, train or
    eval, that it is in. A replay draws the same random numbers (of PyTorch, NumPy and Python: dropout) and starts from
    the same buffers, modes and autocast as the forward sweep; one with another loss is refused. Buffers that the module
    updates (batch norm's running statistics) are updated in the forward sweep only, once per step and student, and a
    copy per step is kept of those that change. A kept step keeps its autograd graph. Attention runs on PyTorch's
    mathematical backend, and compiled functions as they were before: those can be differentiated twice. Wrappers are
    taken off (`unwrapped`).

    `precision` is "default", as PyTorch is set; "float32", without TF32 in `grad` and `grad_jvp` (a FullUnroll's own
    backward pass runs after them, as PyTorch is set); or "bfloat16", the forward pass under autocast. ValueError for
    another, and for a module without parameters.
    """

    def __init__(self, module: nn.Module, precision: str = "default") -> None:
        expect_precision(precision)
        module = unwrapped(module)
        self.module, self.precision = module, precision
        self._names, parameters = [], []
        for name, parameter in module.named_parameters():
            self._names.append(name)
            parameters.append(parameter)
        if not parameters:
            raise ValueError(f"student: {type(module).__name__} has no parameters")
        self._shapes = [parameter.shape for parameter in parameters]
        self._sizes = [parameter.numel() for parameter in parameters]
        self.num_parameters, self.layer_sizes = sum(self._sizes), layer_sizes(module)
        self._replay = Replay(module)

    def grad(
        self, parameters: Tensor, images: Tensor, labels: Tensor, *, step: Step, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        self._check_dtype(parameters)
        losses, gradients = [], []
        keep = step.keep and not create_graph
        for s, row in enumerate(parameters.unbind(0)):
            if keep:
                graph = self._graph(row, images, labels, step, s, Wanted(labels=labels.is_floating_point()))
                step.memory[s].graph, loss, grads = graph, graph.loss, graph.gradients
            else:
                with torch.enable_grad(), computing_in(self.precision):
                    row = row if create_graph and row.requires_grad else row.detach().requires_grad_()
                    pieces = row.split(self._sizes)
                    loss = self._loss(pieces, images, labels, step, s)
                    grads = self._gradients(loss, pieces, create_graph)
            losses.append(loss if create_graph else loss.detach())
            gradients.append(torch.cat([(g if create_graph else g.detach()).reshape(-1) for g in grads]))
        return torch.stack(losses), torch.stack(gradients)

    def grad_jvp(
        self, parameters: Tensor, images: Tensor, labels: Tensor, direction: Tensor, *, step: Step, wanted: Wanted
    ) -> GradientJvp:
        self._check_dtype(parameters)
        rows = [
            self._grad_jvp(row, images, labels, sigma, step, s, wanted)
            for s, (row, sigma) in enumerate(zip(parameters.unbind(0), direction.unbind(0), strict=True))
        ]
        slopes, h_sigmas, by_images, by_labels = zip(*rows, strict=True)
        return GradientJvp(
            torch.stack(slopes),
            torch.stack(h_sigmas) if wanted.parameters else None,
            sum(by_images) if wanted.images else None,
            sum(by_labels) if wanted.labels else None,
        )

    def _graph(self, row: Tensor, images: Tensor, labels: Tensor, step: Step, s: int, wanted: Wanted) -> "_Graph":
        """One student's gradient, with the graph of its derivatives."""
        with torch.enable_grad(), computing_in(self.precision):
            pieces = [piece.requires_grad_() for piece in row.detach().split(self._sizes)]
            images = images.detach().requires_grad_(wanted.images)
            labels = labels.detach().requires_grad_(wanted.labels)
            loss = self._loss(pieces, images, labels, step, s)
            return _Graph(loss, pieces, images, labels, self._gradients(loss, pieces, create_graph=True))

    def _grad_jvp(
        self, row: Tensor, images: Tensor, labels: Tensor, sigma: Tensor, step: Step, s: int, wanted: Wanted
    ) -> GradientJvp:
        """One student's ⟨g, σ⟩, Hσ [P], ∂⟨g, σ⟩/∂x and ∂⟨g, σ⟩/∂y; None where not wanted."""
        graph = None
        if step.memory and s in step.memory:
            graph, step.memory[s].graph = step.memory[s].graph, None  # taken once; a second backward computes it again
        graph = graph or self._graph(row, images, labels, step, s, wanted)
        with torch.enable_grad(), computing_in(self.precision):
            parts = sigma.detach().split(self._sizes)
            terms = [(g, part.view(g.shape)) for g, part in zip(graph.gradients, parts, strict=True)]
            slope = torch.stack([(g.detach() * part).sum() for g, part in terms]).sum()
            # The gradient in a parameter that the loss is linear in, or does not see, has no graph.
            dependent = [(g, part) for g, part in terms if g.requires_grad]
            inputs = [*(graph.pieces if wanted.parameters else ()), *((graph.images,) if wanted.images else ())]
            inputs += (graph.labels,) if wanted.labels else ()
            if not inputs or not dependent:
                results = [torch.zeros_like(x) for x in inputs]
            else:
                outputs, directions = zip(*dependent, strict=True)
                results = list(
                    torch.autograd.grad(outputs, inputs, directions, allow_unused=True, materialize_grads=True)
                )
        by_labels = results.pop() if wanted.labels else None
        by_images = results.pop() if wanted.images else None
        h_sigma = torch.cat([h.reshape(-1) for h in results]) if wanted.parameters else None
        return slope, h_sigma, by_images, by_labels

    def step_bytes(
        self, images: torch.Size, students: int, dtype: torch.dtype, on_gpu: bool = False
    ) -> StepBytes | None:
        """Found by running a step on the meta device, which computes nothing, once for each module; None for a network
        that cannot, and for bfloat16, for there is no autocast there."""
        if self.precision == "bfloat16":
            return None
        known = _sizes.setdefault(self.module, {})
        key = (images, students, dtype, self.num_parameters, *(layer.training for layer in self.module.modules()))
        if key not in known:
            try:
                with torch.random.fork_rng(devices=[]):
                    known[key] = self._step_bytes_on_meta(images, students, dtype)
            except Exception:  # whatever a network of someone else's raises there
                known[key] = None
        return known[key]

    def _step_bytes_on_meta(self, size: torch.Size, students: int, dtype: torch.dtype) -> StepBytes:
        meta = {  # parameters one by one: .to("meta") would untie them
            id(p): nn.Parameter(torch.empty_like(p, device="meta", dtype=dtype)) for p in self.module.parameters()
        }
        module = copy.deepcopy(self.module, meta).to("meta", dtype)
        theta = torch.empty(1, self.num_parameters, dtype=dtype, device="meta")  # students run one by one
        images = torch.empty(size, dtype=dtype, device="meta")
        arguments, wanted = (
            (theta, images, torch.empty(len(images), dtype=torch.int64, device="meta")),
            Wanted(labels=False),
        )
        with LiveBytes() as grad:
            ModuleStudent(module, self.precision).grad(*arguments, step=Step())
        with LiveBytes() as grad_jvp:
            ModuleStudent(module, self.precision).grad_jvp(*arguments, theta, step=Step(), wanted=wanted)
        student, step = ModuleStudent(module, self.precision), Step(keep=True)
        with LiveBytes() as keeping:
            student.grad(*arguments, step=step)
        kept = keeping.alive
        with keeping:  # its peak goes on from there
            student.grad_jvp(*arguments, theta, step=step, wanted=wanted)
        return StepBytes(grad.peak, grad_jvp.peak, keeping.peak - kept, students * kept)

    def why_no_micro_batches(self, images: torch.Size | None = None) -> str | None:
        """Batch norm in training mode; and, once the size of the images is known, what two passes over random images
        show of layers that are not known: logits of an image that depend on another."""
        for name, layer in self.module.named_modules():
            if (
                isinstance(layer, _NormBase)
                and layer.training
                and (layer.track_running_stats or not isinstance(layer, _InstanceNorm))
            ):
                return f"{name} ({type(layer).__name__}) mixes the images of a minibatch"
        if images is None or images[0] == 1:
            return None
        key = (images[1:], *(layer.training for layer in self.module.modules()))
        known = _mixing.setdefault(self.module, {})
        if key not in known:
            try:
                known[key] = self._why_mixing(images[1:])
            except Exception as error:  # whatever a network of someone else's raises there
                words = (str(error).splitlines() or [""])[0]
                known[key] = f"the network does not run on one or two images: {type(error).__name__}: {words}"
        return known[key]

    @torch.no_grad()
    def _why_mixing(self, image: torch.Size) -> str | None:  # [C, H, W]
        """Whether the logits of an image change with the one beside it, or without it. Nothing is drawn from the global
        random state, and buffers stay as they are."""
        first = next(self.module.parameters())
        if first.is_meta:
            return None
        generator, device = torch.Generator().manual_seed(0), first.device

        def draw(shape: Sequence[int]) -> Tensor:
            return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64).to(device, first.dtype)

        # moved a little: layers whose weights begin at 0 hide what they do
        parameters = {n: p + 0.02 * draw(p.shape).to(p) for n, p in self.module.named_parameters()}
        step, draws = Step({0: self._replay.remember(device)}), []

        def logits(images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, K]
            with self._replay.run(step, 0, device) as buffers, self._autocast(device):
                before = torch.get_rng_state()
                result = self._logits({**parameters, **buffers}, images).double()
                draws.append(not torch.equal(before, torch.get_rng_state()))
            return result

        drawn = draw((3, *image))
        together, others, alone = logits(drawn[:2]), logits(drawn[::2]), None
        if not any(draws):  # a dropout's draws depend on how many images there are
            alone = logits(drawn[:1])
        scale = together.abs().max()
        for seen in (others, alone):
            if seen is not None and (seen[0] - together[0]).abs().max() > 1e-4 * scale:
                return f"{type(self.module).__name__} mixes the images of a minibatch"
        return None

    def _loss(
        self,
        pieces: Sequence[Tensor],  # θ of student s, flat, by parameter
        images: Tensor,  # [B, C, H, W]
        labels: Tensor,  # int64 [B], or target weights [B, K]
        step: Step,
        s: int,
    ) -> Tensor:  # []
        parameters = {
            name: piece.view(shape) for name, piece, shape in zip(self._names, pieces, self._shapes, strict=True)
        }
        with self._replay.run(step, s, images.device) as buffers, self._autocast(images.device):
            given = images.clone()  # a layer may work in place
            logits = self._logits({**parameters, **buffers}, given)
            _check_logits(logits, labels)
            loss = cross_entropy(logits, labels)
        self._replay.check(step.memory[s], loss)
        return loss

    def _logits(
        self,
        values: dict[str, Tensor],  # of parameters and buffers
        images: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, K]
        # neither the fused kernels of attention nor compiled functions have a second derivative
        with sdpa_kernel(SDPBackend.MATH), _eagerly():
            return functional_call(self.module, values, (images,))

    def _gradients(
        self,
        loss: Tensor,  # []
        pieces: Sequence[Tensor],  # of θ, by parameter
        create_graph: bool,
    ) -> list[Tensor]:  # ∂ℓ/∂θ, by parameter
        grads = [None]
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, pieces, create_graph=create_graph, allow_unused=True)
        if all(grad is None for grad in grads):
            raise ValueError(
                f"student: the logits of {type(self.module).__name__} depend on none of its parameters; "
                "its forward has to use them as attributes of its modules, without detach or no_grad"
            )
        return [torch.zeros_like(piece) if g is None else g for g, piece in zip(grads, pieces, strict=True)]

    def _check_dtype(self, parameters: Tensor) -> None:
        if self.precision == "bfloat16" and parameters.dtype != torch.float32:
            got = str(parameters.dtype).removeprefix("torch.")
            raise TypeError(f"parameters: expected float32 with the precision bfloat16, got {got}")

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """What the precision asks for."""
        if self.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


def _eagerly() -> contextlib.AbstractContextManager:
    """Run functions and modules that were compiled as they were before."""
    if "torch._dynamo" not in sys.modules:  # nothing was; its import takes seconds
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def _check_logits(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # int64 [B], or target weights [B, K]
) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(labels):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"student: expected logits [B, K] with B = {len(labels)} from the network, got {got}")
    check_labels(labels, logits.shape[1])
