"""The network inside what other code wraps it in: DataParallel, torch.compile, averages, flat parameters."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def unwrapped(network: nn.Module) -> nn.Module:
    """The network that a wrapper holds, through any number of them; one that is not wrapped is returned as it is.

    Of nn.DataParallel, DistributedDataParallel, torch.compile and AveragedModel it is the module inside, which shares
    its parameters. A module with one flat parameter, views of which it puts into its layers (the field's
    ReparamModule), is copied with parameters of its own, in the order of the flat one; buffers are shared.

    Errors: TypeError for ScriptModules, FSDP, and wrappers around layers inside the network that cannot be called with
    other parameters; ValueError for a wrapper with hooks, or a flat parameter whose views its layers do not hold.
    """
    inner = _inner(network)
    while inner is not None:
        if any(vars(network).get(hooks) for hooks in HOOKS):
            raise ValueError(
                f"student: the {type(network).__name__} has hooks, which only its own forward runs; "
                "register them on the module inside"
            )
        network, inner = inner, _inner(inner)
    reason = next(_obstacles(network), None)
    if reason is not None:
        raise TypeError(f"student: {reason}")
    return network


def _inner(network: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None for anything else."""
    if isinstance(network, (*_PARALLEL, AveragedModel)):
        return network.module
    if _is_a(network, "OptimizedModule", "torch._dynamo"):
        return network._modules["_orig_mod"]
    parameters = list(network.named_parameters())
    if len(parameters) == 1 and "." not in parameters[0][0] and parameters[0][1].dim() == 1:
        return _of_flat(network, *parameters[0])
    return None


def _is_a(value: object, name: str, package: str) -> bool:
    """Whether this is an instance of a class, by its name: some take seconds to import."""
    return any(cls.__name__ == name and cls.__module__.startswith(package) for cls in type(value).__mro__)


def _obstacles(network: nn.Module) -> Iterator[str]:
    """Why a network, whose outer wrappers were taken off, cannot be called with other parameters."""
    for path, module in network.named_modules():
        where = f"its layer {path}" if path else "the network"
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            yield f"{where} is a {kind}, whose parameters are fixed; give the module that was scripted or traced"
        if _is_sharded(module):
            yield f"{where} is sharded by FSDP, so that no process has all parameters; give it before it is sharded"
        if path and isinstance(module._parameters.get("flat_param"), nn.Parameter):
            yield f"{where} is a {kind} with a flat_param; give the network with the layer that it was made from"
        parallel = isinstance(module, nn.parallel.DistributedDataParallel)
        if parallel or (isinstance(module, nn.DataParallel) and len(module.device_ids) > 1):
            yield f"{where} is a {kind}; give the network without it, on one device"


def _is_sharded(module: nn.Module) -> bool:
    return (
        _is_a(module, "FullyShardedDataParallel", "torch.distributed")
        or _is_a(module, "FSDPModule", "torch.distributed")
        or any(_is_a(p, "DTensor", "torch.distributed") for p in module.parameters(recurse=False))
    )


def _of_flat(wrapper: nn.Module, flat_name: str, flat: Tensor) -> nn.Module | None:  # flat [P]
    """A copy of the network that a wrapper with one flat parameter holds, whose parameters are its own; None where no
    layer has a view of a flat tensor and the parameter's name does not claim it, either."""
    views = _views(wrapper, flat_name, flat)
    if not _tile(views, len(flat)):
        if flat_name != "flat_param":
            return None
        raise ValueError(
            f"student: the {type(wrapper).__name__} has a flat_param of which its layers hold no views; "
            "give the network that it was made from"
        )
    named = {name: view for name, view in views.items() if name.startswith("module.")}
    whole = list(wrapper._modules) != ["module"] or len(named) < len(views)  # a network made flat itself
    network, prefix = (wrapper, "") if whole else (wrapper.module, "module.")
    pieces = {place: flat.detach()[place:][:count].clone() for place, count in sorted(_places(views))}
    parameters = {place: nn.Parameter(piece) for place, piece in pieces.items()}
    own = {}
    for view in views.values():
        own[id(view)] = parameter = parameters[view.storage_offset()]
        parameter.data = parameter.data.view(view.shape)
    copied = copy.deepcopy(network, {**own, id(flat): flat, **{id(b): b for b in network.buffers()}})
    if whole:
        del copied._parameters[flat_name]
    for name in sorted(views, key=lambda name: views[name].storage_offset()):
        path, _, attribute = name.removeprefix(prefix).rpartition(".")
        layer = copied.get_submodule(path)
        layer.register_parameter(attribute, vars(layer).pop(attribute))
    if list(map(id, copied.parameters())) != list(map(id, parameters.values())):
        raise ValueError(
            f"student: the {type(wrapper).__name__} has its parameters in another order than module.parameters(); "
            "give the network that it was made from"
        )
    return copied


def _views(wrapper: nn.Module, flat_name: str, flat: Tensor) -> dict[str, Tensor]:  # flat [P]
    """Plain attributes of modules that are views of the flat parameter, by path and name; or, where its name says what
    it is, of another tensor of its size: their values are stale where the wrapper was moved."""
    found = {
        f"{path}.{name}" if path else name: value
        for path, module in wrapper.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.layout == torch.strided and value._is_view()
    }
    storages = {view.untyped_storage()._cdata: view.untyped_storage().nbytes() for view in found.values()}
    if len(storages) != 1 or (flat_name != "flat_param" and flat.untyped_storage()._cdata not in storages):
        return {}
    return found


def _places(views: dict[str, Tensor]) -> set[tuple[int, int]]:
    """Where the views begin in the flat tensor, and their sizes; tied ones are the same piece."""
    return {(view.storage_offset(), view.numel()) for view in views.values()}


def _tile(views: dict[str, Tensor], count: int) -> bool:
    """Whether the views cover [0, count) once."""
    end = 0
    for start, numel in sorted(_places(views)):
        if start != end:
            return False
        end += numel
    return bool(views) and end == count
