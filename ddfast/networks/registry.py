"""Networks by name: ddfast's own, those that users register or give as objects, torchvision's and timm's."""

import copy
import difflib
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ddfast.networks.classic import alexcifarnet, alexnet, lenet, mlp, smallvgg, vgg11
from ddfast.networks.convnet import ConvNet
from ddfast.networks.libraries import LIBRARIES, from_library
from ddfast.networks.resnet import resnet18, resnet18_ap
from ddfast.networks.vit import vit

Factory = Callable[..., nn.Module]

NETWORKS: dict[str, Factory] = {
    "convnet": ConvNet,
    "resnet18": resnet18,
    "resnet18_ap": resnet18_ap,
    "vgg11": vgg11,
    "smallvgg": smallvgg,
    "alexnet": alexnet,
    "alexcifarnet": alexcifarnet,
    "lenet": lenet,
    "mlp": mlp,
    "vit": vit,
}
BUILT_IN = frozenset(NETWORKS.values())
GIVEN = ("channels", "num_classes", "image_size")  # what the data set says
OWN = "own"  # the names of networks that were given as objects begin with it
RESETS = ("reset_parameters", "_reset_parameters")


def register_network(name: str, factory: Factory) -> None:
    """Make `factory` available as the network `name`, everywhere a network is named.

    The factory is called with those of the keyword arguments channels, num_classes and image_size (H, W) that it takes,
    and with the options of the name: `mynet:width=64` calls factory(…, width=64). It returns a new nn.Module that maps
    images [B, C, H, W] to logits [B, K], and draws its initial parameters from PyTorch's global state, which is seeded.

    Errors: ValueError for a name that is taken or has other characters than small letters, digits, _ and -; TypeError
    for what cannot be called.
    """
    if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum() or name != name.lower():
        raise ValueError(f"name: expected small letters, digits, _ and -, got {name!r}")
    if name in LIBRARIES or name == OWN or (name in NETWORKS and NETWORKS[name] is not factory):
        raise ValueError(f"name: {name!r} is taken; choose another")
    if not callable(factory) or isinstance(factory, nn.Module):
        raise TypeError(f"factory: expected a callable that returns a new nn.Module, got {type(factory).__name__}")
    NETWORKS[name] = factory


def name_of(network: Any) -> str:
    """The name of a network: itself, or for a factory or a module one under which `create` makes it.

    A module is copied and initialised again by the reset_parameters of its layers. The name is that of the class or
    function; a run that is resumed needs the object again.

    Errors: TypeError for something else; ValueError for a module with parameters that nothing initialises.
    """
    if isinstance(network, str):
        return network
    if not callable(network):
        raise TypeError(f"network: expected a name, an nn.Module or a function that returns one, got {network!r}")
    factory = _Copies(network) if isinstance(network, nn.Module) else network
    base = f"{OWN}:{_called(network)}"
    name, number = base, 2
    while name in NETWORKS and not _alike(NETWORKS[name], factory):
        name, number = f"{base}-{number}", number + 1
    NETWORKS[name] = factory
    return name


def create(
    name: str,
    *,
    channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A network, on the CPU, its initial parameters drawn from `generator`, and the global state left alone; None for
    torch's own, as torch.manual_seed has it.

    `name` is one of NETWORKS, with options after colons: convnet, convnet:depth=4:width=64, resnet18:norm=batchnorm; or
    one of a library, as torchvision:resnet18 or timm:vit_tiny_patch16_224.

    Errors: ValueError that lists the names or the options, for unknown ones, or says what images are too small.
    """
    sizes = {"channels": channels, "num_classes": num_classes, "image_size": tuple(image_size)}
    factory, options = _parsed(name)
    generator = torch.default_generator if generator is None else generator
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        network = factory(**{key: value for key, value in sizes.items() if _takes(factory, key)}, **options)
        if factory not in BUILT_IN:
            _check(name, network, sizes)
    return network


def _parsed(name: str) -> tuple[Factory, dict[str, int | str]]:
    first, *words = str(name).split(":")
    if first.lower() in LIBRARIES:
        if not words:
            raise ValueError(
                f"network: expected a model of {first}, as {first}:{LIBRARIES[first.lower()]}, got {name!r}"
            )
        return from_library(first.lower(), words[0]), _options(words[1:], None, name)
    if first == OWN:
        if name not in NETWORKS:
            raise ValueError(f"network: {name} was given as an object; give it again, as network= or networks=")
        return NETWORKS[name], {}
    base = first.lower()
    if base not in NETWORKS:
        near = difflib.get_close_matches(base, NETWORKS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        named = [known for known in NETWORKS if not known.startswith(f"{OWN}:")]
        raise ValueError(f"network: expected one of {', '.join(named)}, {_libraries()}, got {name!r}{hint}")
    known = [option for option in inspect.signature(NETWORKS[base]).parameters if option not in GIVEN]
    return NETWORKS[base], _options(words, known, name.lower())


def _options(words: list[str], known: list[str] | None, name: str) -> dict[str, int | str]:
    """Options as name=value; of libraries all, for they check them."""
    options: dict[str, int | str] = {}
    for word in words:
        option, _, value = word.partition("=")
        option = option.replace("-", "_").lower()
        if (known is not None and option not in known) or not value:
            base, expected = name.split(":")[0], "…" if known is None else ", ".join(known) or "none"
            raise ValueError(f"network: expected options of {expected} as {base}:name=value, got {name!r}")
        options[option] = int(value) if value.isdigit() else value.lower()
    return options


def _libraries() -> str:
    return " or ".join(f"{library}:NAME" for library in LIBRARIES)


def _takes(factory: Factory, argument: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def structure_of(name: str, network: nn.Module) -> str | None:
    """A checksum of the layers of a network that its name does not tell: of users, or of a library; None for ours."""
    if _parsed(name)[0] in BUILT_IN:
        return None
    shapes = [(key, list(tensor.shape)) for key, tensor in network.state_dict().items()]
    return hashlib.sha256(f"{network}{shapes}".encode()).hexdigest()[:12]


@torch.no_grad()
def _check(name: str, network: Any, sizes: dict[str, Any]) -> None:
    """ValueError or TypeError where it is no network for such images."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: {name} made {type(network).__name__}, expected an nn.Module")
    C, K, size = (sizes[key] for key in GIVEN)
    was_training = network.training
    try:
        logits = network.eval()(torch.zeros(2, C, *size))
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        sentence = " ".join(str(error).split())[:200]
        raise ValueError(f"network: {name} cannot run on images of {C} × {size[0]} × {size[1]}: {sentence}") from None
    finally:
        network.train(was_training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, K):
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"network: {name} gives {got} for 2 images, expected logits [2, {K}]")


def _called(network: Any) -> str:
    kind = type(network) if isinstance(network, nn.Module) else network
    named = getattr(kind, "__qualname__", type(kind).__name__)
    return named.rpartition("<locals>.")[2].replace(":", "")


def _alike(one: Factory, other: Factory) -> bool:
    """Whether two factories are one, be it defined twice."""
    if isinstance(one, _Copies) and isinstance(other, _Copies):
        return str(one.module) == str(other.module)
    codes = [getattr(factory, "__code__", None) for factory in (one, other)]
    return one is other or (codes[0] is not None and codes[0] == codes[1])


class _Copies:
    """A factory of copies of a module, initialised anew."""

    def __init__(self, module: nn.Module) -> None:
        lacking = [
            f"{name or type(module).__name__}.{parameter}"
            for name, part in module.named_modules()
            for parameter, _ in part.named_parameters(recurse=False)
            if not any(hasattr(part, reset) for reset in RESETS)
        ]
        if lacking:
            raise ValueError(
                f"network: {type(module).__name__} has parameters that no reset_parameters initialises "
                f"({', '.join(lacking[:3])}); give a function that returns a new one instead"
            )
        self.module = copy.deepcopy(module).cpu()

    def __call__(self) -> nn.Module:
        made = copy.deepcopy(self.module)
        for part in made.modules():
            reset = next((getattr(part, name) for name in RESETS if hasattr(part, name)), None)
            if reset is not None:
                reset()
        return made
