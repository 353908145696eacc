"""Plain training of networks side by side: SGD or GSAM, by the fused ops where they can run the network."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ddfast.engine.students.base import Step
from ddfast.engine.students.convnet import ConvNetStudent
from ddfast.engine.students.fused import why_not_fused
from ddfast.engine.students.gsam import GSAM
from ddfast.engine.students.recognised import RecognisedStudent, recognise
from ddfast.runtime.devices import free_bytes

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class Training:
    """S networks of one kind, each on minibatches of its own, by torch.optim.SGD, Adam or AdamW.

    The fused ConvNet, and the field's in other code where it is recognised on images of size `image`, runs all of them
    at once on flat parameters, without an autograd graph; any other network is trained alone, by autograd. Networks are
    put in training mode, and frozen parameters are trained too, as an unroll does. With `sharpness` each step goes
    along GSAM's direction, of two gradients; momentum and weight decay are added to it. Dropout is drawn for each of
    the two.
    """

    def __init__(
        self,
        nets: list[nn.Module],
        image: torch.Size,  # [C, H, W]
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        sharpness: GSAM | None = None,
        optimizer: str = "sgd",  # adam, adamw
    ) -> None:
        self.nets, self.sharpness = nets, sharpness
        self._frozen = [p for net in nets for p in net.parameters() if not p.requires_grad]
        student = student_of_all(nets, image)
        if isinstance(student, str) and len(nets) > 1:
            raise ValueError(f"nets: expected one where a network is not fused, got {len(nets)}: {student}")
        self._student = None if isinstance(student, str) else student
        if self._student is not None:
            rows = [parameters_to_vector(net.parameters()).detach() for net in nets]
            self._learned = [torch.stack(rows).requires_grad_()]
        else:
            self._learned = [p.requires_grad_() for p in nets[0].parameters()]
        how = {"momentum": momentum} if optimizer == "sgd" else {}
        self.optimizer = OPTIMIZERS[optimizer](self._learned, lr=lr, weight_decay=weight_decay, **how)

    def step(
        self,
        images: Tensor,  # [S, B, C, H, W]
        labels: Tensor,  # int64 [S, B], or target weights [S, B, K]
    ) -> Tensor:  # [S], the mean cross-entropy of each
        """One step of SGD; the networks' own modules are behind until `write`."""
        if self.sharpness is None:
            losses = self._gradients(images, labels)
        else:
            losses = self._sharpness_aware(images, labels)
        self.optimizer.step()
        return losses

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:  # losses [S]; the gradients are left in .grad
        if self._student is not None:
            (parameters,) = self._learned
            losses, parameters.grad = self._student.grad(parameters.detach(), images, labels, step=Step())
            return losses
        self.optimizer.zero_grad()
        loss = cross_entropy(self.nets[0](images[0]), labels[0])
        loss.backward()
        return loss.detach()[None]

    def _sharpness_aware(
        self, images: Tensor, labels: Tensor
    ) -> Tensor:  # losses [S]; the directions are left in .grad
        at, buffers = self.parameters(), [b for net in self.nets for b in net.buffers()]

        def gradient(parameters: Tensor) -> tuple[Tensor, Tensor]:  # [S, P] -> losses [S], g [S, P]
            self.load(parameters)
            before = [b.clone() for b in buffers]
            losses = self._gradients(images, labels)
            if parameters is not at:  # perturbed: batch norm's running statistics are those seen at w alone
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)
            return losses, self._rows([torch.zeros_like(p) if p.grad is None else p.grad for p in self._learned])

        losses, direction = self.sharpness.direction(gradient, at)
        self.load(at)
        for learned, piece in zip(self._learned, self._pieces(direction), strict=True):
            if learned.grad is not None:  # None: the loss does not see it, and SGD leaves it alone
                learned.grad.copy_(piece)
        return losses

    def parameters(self) -> Tensor:  # [S, P]
        """A copy of the parameters as they are."""
        return self._rows(self._learned)

    def velocity(self) -> Tensor:  # [S, P]
        """A copy of the momentum after the last step."""
        return self._rows([self.optimizer.state[p]["momentum_buffer"] for p in self._learned])

    def load(
        self,
        parameters: Tensor,  # [S, P]
        velocity: Tensor | None = None,  # [S, P]
    ) -> None:
        """Go on from copies of these."""
        for learned, piece in zip(self._learned, self._pieces(parameters), strict=True):
            learned.data.copy_(piece)
        if velocity is not None:
            for learned, piece in zip(self._learned, self._pieces(velocity), strict=True):
                self.optimizer.state[learned]["momentum_buffer"] = piece.to(learned.device, copy=True)

    def write(self) -> list[nn.Module]:
        """The networks, their modules brought up to date."""
        if self._student is not None:
            for net, row in zip(self.nets, self._learned[0].detach(), strict=True):
                vector_to_parameters(row.clone(), net.parameters())
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        return self.nets

    def _rows(self, values: list[Tensor]) -> Tensor:  # like _learned -> [S, P]
        values = [value.detach() for value in values]
        return values[0].clone() if self._student is not None else parameters_to_vector(values)[None]

    def _pieces(self, rows: Tensor) -> list[Tensor]:  # [S, P] -> like _learned
        if self._student is not None:
            return [rows]
        pieces = rows[0].split([p.numel() for p in self._learned])
        return [piece.view_as(p) for piece, p in zip(pieces, self._learned, strict=True)]


def student_of_all(nets: list[nn.Module], image: torch.Size) -> ConvNetStudent | str:
    """What runs all networks at once in training mode, or why nothing does; ValueError for networks of several kinds
    that are fused each."""
    for net in nets:
        net.train()
    reason = next((reason for reason in map(why_not_fused, nets) if reason is not None), None)
    if reason is None:
        students = [ConvNetStudent(net) for net in nets]
        if any(student.layout != students[0].layout for student in students):
            raise ValueError("nets: expected networks of one kind, got several")
        return students[0]
    found = [recognise(net, image) for net in nets]
    first = found[0]
    if isinstance(first, str):
        return reason
    if all(not isinstance(one, str) and one.is_like(first) for one in found):
        return RecognisedStudent(nets[0], first)
    return "the others are of another kind"


def side_by_side(
    net: nn.Module,
    count: int,
    batch: torch.Size,  # [B, C, H, W]
    device: torch.device,
    at_once: int | None = None,
) -> int:
    """How many of `count` such networks to train at once: `at_once`, else one on a CPU, which a single one keeps busy,
    and on a GPU as many as half of its free memory holds; always one of networks that are not fused."""
    student = student_of_all([net], batch[1:])
    if isinstance(student, str):
        return 1
    if at_once is not None or device.type == "cpu":
        return min(count, at_once or 1)
    one = student.step_bytes(batch, 1, torch.float32).grad
    return max(1, min(count, int(free_bytes(device) / 2 / one)))
