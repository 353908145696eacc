"""ZCA whitening: fitted by kornia, its matrices kept once in the user's cache and referred to by checksum."""

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.data.images import to_unit
from ddfast.runtime.files import (
    UNREADABLE,
    cache_folder,
    expect_writable,
    fault_of_machine,
    locking,
    remove_leftovers,
    write_safetensors,
)

log = logging.getLogger("ddfast")

EPS = 0.1  # of the published code (its paper says kornia's defaults)
MOST_VALUES = 20_000  # per image; the matrices have that many squared, and their fit takes its cube
PROBE = 8  # entries of the matrix that are recorded, to verify a refit on another machine


@dataclass(frozen=True)
class ZCA:
    """Which whitening: x ↦ (x − mean) W on flattened images in [0, 1], W = V (Λ + ε)^(−1/2) Vᵀ of their covariance.

    The matrices themselves, [D, D] with D = C·H·W, lie in `file`.
    """

    data: str  # fingerprint of the training images that it was fitted on
    eps: float
    checksum: str  # of the file's tensors
    probe: tuple[float, ...]  # the first entries of W's diagonal
    _kept: dict = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def fitted(
        cls,
        images: Tensor,  # [N, C, H, W], uint8 or in [0, 1]: all training images
        data: str,
        eps: float = EPS,
    ) -> "ZCA":
        """The whitening of these images: the one in the cache, or a new one, which is put there.

        Errors: ValueError for images too large to be whitened.
        """
        path = _file(data, eps)
        tensors = _read(path)
        if tensors is None:
            values = images[0].numel()
            if values > MOST_VALUES:
                raise ValueError(
                    f"zca: expected images of at most {MOST_VALUES} values, got {values}: the whitening matrix would "
                    f"take {4 * values**2 / 1e9:.0f} GB; use no zca, or a smaller image_size"
                )
            expect_writable(path.parent)
            log.info("fitting ZCA to %d images: two matrices, %.0f MB in %s", len(images), 8e-6 * values**2, path)
            tensors = _fit(images, eps)
            _write(path, tensors)
        return cls._of(data, eps, tensors)

    @classmethod
    def _of(cls, data: str, eps: float, tensors: dict[str, Tensor]) -> "ZCA":
        probe = tuple(tensors["matrix"].diagonal()[:PROBE].tolist())
        return cls(data, eps, _checksum(tensors), probe)

    def kept(self, values: int) -> "ZCA | None":
        """The same whitening of images of so many values, as the cache has it; None where it has none."""
        tensors = _read(self.file)
        if tensors is None or tensors["mean"].shape[1] != values:
            return None
        found = self._of(self.data, self.eps, tensors)
        return found if found.matches(self) else None

    def matches(self, other: "ZCA") -> bool:
        """Whether both whiten alike: fitted on the same data, be it on machines that round differently."""
        if self == other:
            return True
        close = torch.allclose(torch.tensor(self.probe), torch.tensor(other.probe), rtol=1e-2)
        return (self.data, self.eps) == (other.data, other.eps) and close

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"data": self.data, "eps": self.eps, "checksum": self.checksum, "probe": list(self.probe)}

    @property
    def file(self) -> Path:
        """Where the matrices are."""
        return _file(self.data, self.eps)

    def whiten(self, images: Tensor) -> Tensor:  # [N, C, H, W] in [0, 1] -> whitened
        """Whiten."""
        mean, matrix = self._tensors(images.device, "mean", "matrix")
        return ((images.flatten(1) - mean) @ matrix).view_as(images)

    def unwhiten(self, images: Tensor) -> Tensor:  # [N, C, H, W] whitened -> in [0, 1], for viewing
        """Undo `whiten`."""
        mean, inverse = self._tensors(images.device, "mean", "inverse")
        return (images.flatten(1) @ inverse + mean).view_as(images)

    def _tensors(self, device: torch.device, *names: str) -> list[Tensor]:
        """Of mean [1, D], matrix [D, D] and inverse [D, D] these, read when first needed and then kept."""
        if any((name, device) not in self._kept for name in names):
            tensors = _read(self.file)
            if tensors is None:
                raise FileNotFoundError(
                    f"{self.file}: the whitening matrices are not there, or damaged; load their data set with zca "
                    f"once, which fits them again"
                )
            self._kept.update({(name, device): tensors[name].to(device) for name in names})
        return [self._kept[name, device] for name in names]


def _file(data: str, eps: float) -> Path:
    return cache_folder() / "zca" / f"{data}-eps{eps:g}.safetensors"


def _fit(images: Tensor, eps: float) -> dict[str, Tensor]:  # [N, C, H, W], uint8 or in [0, 1]
    from kornia.enhance import ZCAWhitening

    whitening = ZCAWhitening(eps=eps, compute_inv=True).fit(to_unit(images))
    tensors = {
        "mean": whitening.mean_vector.reshape(1, -1),
        "matrix": whitening.transform_matrix,
        "inverse": whitening.transform_inv,
    }
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy())
    return digest.hexdigest()[:16]


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with locking(path.parent, wait=True):
        remove_leftovers(path.parent)
        write_safetensors(path, tensors, {"checksum": _checksum(tensors)})


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; None where it is not there or not as it was written; else the fault of the machine."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("mean", "matrix", "inverse")}
            D = tensors["matrix"].shape[-1]
            for name, shape in (("mean", (1, D)), ("matrix", (D, D)), ("inverse", (D, D))):
                if tensors[name].shape != shape or tensors[name].dtype != torch.float32:
                    return None
            return tensors if (file.metadata() or {}).get("checksum") == _checksum(tensors) else None
    except FileNotFoundError:
        return None
    except (SafetensorError, *UNREADABLE) as error:
        if fault := fault_of_machine(path, error):
            raise fault from None
        return None
