"""Networks as objects, under names of one's own, and from libraries."""

import json

import pytest
import torch
from torch import nn

import ddfast
from ddfast import networks
from ddfast.networks import create, name_of, register_network, registry
from ddfast.runtime import seeds
from tests.conftest import SMALL

SIZES = {"channels": 1, "num_classes": 3, "image_size": (16, 16)}
JOB = {name: value for name, value in SMALL.items() if name != "iterations"} | {"iterations": 2}


def made(name: str, seed: int = 0, **sizes) -> nn.Module:
    return create(name, generator=seeds.generator(seed), **SIZES | sizes)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(p.equal(q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


class Small(nn.Sequential):
    def __init__(self, channels=1, num_classes=3, image_size=(16, 16), width=4):
        H, W = image_size
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(width * H * W, num_classes)
        )


@pytest.fixture(autouse=True)
def own_names():
    before = dict(registry.NETWORKS)
    yield
    registry.NETWORKS.clear()
    registry.NETWORKS.update(before)


def test_a_registered_network_takes_options_and_its_seed_as_ours_do():
    register_network("small", Small)
    register_network("small", Small)
    assert made("small:width=8")[0].out_channels == 8 and made("small", channels=3)[0].in_channels == 3
    before = torch.get_rng_state()
    assert same(made("small"), made("small")) and not same(made("small"), made("small", 1))
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="expected options of width as small:name=value"):
        made("small:depth=3")
    with pytest.raises(ValueError, match="got 'smal'; did you mean small"):
        made("smal")


@pytest.mark.parametrize("name", ["convnet", "Small", "my:net", "", "own", "timm"])
def test_names_that_are_taken_or_cannot_be_are_refused(name):
    with pytest.raises(ValueError, match="name: "):
        register_network(name, Small)


def test_only_factories_are_registered():
    for wrong in (Small(), 3, "convnet"):
        with pytest.raises(TypeError, match="factory: expected a callable"):
            register_network("small", wrong)


def test_a_function_is_called_with_what_it_takes():
    for factory in (Small, lambda: Small(), lambda num_classes: Small(num_classes=num_classes)):
        assert made(name_of(factory))[-1].out_features == 3
    assert name_of(Small) == "own:Small" == name_of(Small) and name_of("convnet") == "convnet"
    assert name_of(lambda: Small(width=5)) != name_of(lambda: Small(width=6))


def test_a_module_is_copied_and_initialised_anew():
    module = Small()
    name, before = name_of(module), [p.clone() for p in module.parameters()]
    assert not same(made(name), module) and same(made(name), made(name)) and not same(made(name), made(name, 1))
    assert all(p.equal(q) for p, q in zip(module.parameters(), before, strict=True))
    assert name_of(Small()) == name and name_of(Small(width=5)) != name


def test_what_is_no_network_for_the_data_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(ValueError, match=r"Bare has parameters that no reset_parameters initialises \(Bare.scale\)"):
        name_of(Bare())
    with pytest.raises(TypeError, match=r"network: expected a name, an nn\.Module or a function"):
        name_of(3)
    with pytest.raises(ValueError, match=r"gives \[2, 4\] for 2 images, expected logits \[2, 3\]"):
        made(name_of(lambda: Small(num_classes=4)))
    with pytest.raises(ValueError, match="cannot run on images of 1 × 16 × 16"):
        made(name_of(lambda: Small(image_size=(8, 8))))
    with pytest.raises(TypeError, match=r"made int, expected an nn\.Module"):
        made(name_of(lambda: 3))
    with pytest.raises(ValueError, match="own:Gone was given as an object; give it again"):
        made("own:Gone")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1:dropout=0", "vit_b_32"])
def test_torchvisions_classifiers_are_adapted_to_the_data(name):
    network = made(f"torchvision:{name}", image_size=(32, 32))
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    assert same(network, made(f"torchvision:{name}", image_size=(32, 32)))


def test_an_unknown_model_of_a_library_is_refused():
    with pytest.raises(ValueError, match="torchvision has no classifier 'resnet19'"):
        made("torchvision:resnet19")
    with pytest.raises(ValueError, match="expected a model of torchvision, as torchvision:resnet18"):
        made("torchvision")
    with pytest.raises(ValueError, match="torchvision:alexnet cannot run on images of 1 × 16 × 16"):
        made("torchvision:alexnet")
    with pytest.raises(ValueError, match=r"timm:nothing needs `pip install timm`|timm has no model 'nothing'"):
        made("timm:nothing")


def test_timms_classifiers_are_adapted_to_the_data():
    pytest.importorskip("timm")
    for name in ("resnet10t", "vit_tiny_patch16_224:patch_size=8:depth=2"):
        assert made(f"timm:{name}", image_size=(32, 32))(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("give", [lambda: Small, Small], ids=["class", "module"])
def test_a_run_with_an_object_is_a_whole_job_that_resumes_when_it_is_given_again(give, pair, tmp_path):
    done = ddfast.distill(pair, network=give(), networks=(give(), "mlp"), output=tmp_path / "run", **JOB)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["network"] == "own:Small" == done.synthetic.network and config["structure"]
    assert set(done.accuracy["distilled"]["networks"]) == {"own:Small", "mlp"}
    registry.NETWORKS.pop("own:Small")
    with pytest.raises(ValueError, match="own:Small was given as an object; give it again"):
        ddfast.distill(pair, output=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="own:Small has other layers than the run's"):
        ddfast.distill(pair, network=lambda_called_small(), output=tmp_path / "run", resume=True)
    registry.NETWORKS.pop("own:Small")
    again = ddfast.distill(pair, network=give(), output=tmp_path / "run", resume=True)
    assert again.synthetic.images.equal(done.synthetic.images)
    evaluated = ddfast.evaluate(done.synthetic, pair, networks=(give(), "mlp"), num_eval=1, eval_epochs=2)
    assert evaluated.of(give()).n == 1


def lambda_called_small():
    class Small(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(256, 3))

    return Small


def test_experts_in_the_cache_are_of_the_layers_and_not_of_the_name(pair):
    options = {"num_experts": 1, "train_epochs": 1, "batch_train": 6}
    first = ddfast.train_experts(pair, network=Small, **options)
    registry.NETWORKS.pop("own:Small")
    other = ddfast.train_experts(pair, network=lambda_called_small(), **options)
    assert first.path != other.path and first.settings["network"] == other.settings["network"] == "own:Small"


def test_networks_of_libraries_are_distilled_for(pair, tmp_path):
    network = "torchvision:mobilenet_v3_small:width_mult=1"
    store = ddfast.train_experts(pair, network=network, num_experts=1, train_epochs=1, batch_train=12)
    assert store.settings["network"] == network and networks.structure_of(network, made(network))


def test_without_a_generator_parameters_are_torchs_own_draw():
    sizes = {"channels": 1, "num_classes": 2, "image_size": (8, 8)}
    torch.manual_seed(3)
    first, second = (networks.create("mlp", **sizes).state_dict() for _ in range(2))
    torch.manual_seed(3)
    again = networks.create("mlp", **sizes).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], second[name]) for name in first)
