"""The networks: sizes, options, and that the fused layer changes nothing."""

import itertools
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from ddfast import match_trajectory
from ddfast.engine.adjoints import CheckpointedUnroll, FullUnroll
from ddfast.networks import NETWORKS, Conv3x3, ConvNet, NormReLUPool, create, resnet18
from ddfast.runtime import seeds
from tests.conftest import normal, relative_error, uniform
from tests.networks_for_tests import PlainConvNet

OPTIONS = pytest.mark.parametrize(
    "norm, activation, pooling",
    list(
        itertools.product(
            ["instancenorm", "batchnorm", "layernorm", "groupnorm", "none"],
            ["relu", "leakyrelu", "sigmoid", "swish"],
            ["avgpooling", "maxpooling", "none"],
        )
    ),
)


@pytest.mark.parametrize(
    "channels, classes, size, padding, depth, parameters",
    [
        (3, 10, (32, 32), 1, 3, 320_010),  # the figures of the field for CIFAR-10, CIFAR-100, Tiny, ImageNet-10
        (3, 100, (32, 32), 1, 3, 504_420),
        (3, 200, (64, 64), 1, 4, 857_160),
        (3, 10, (128, 128), 1, 5, 615_690),
        (1, 10, (28, 28), 3, 3, 317_706),
    ],
)
def test_convnet_has_the_fields_depth_and_parameters(channels, classes, size, padding, depth, parameters):
    network = ConvNet(channels, classes, image_size=size, first_padding=padding)
    assert sum(isinstance(m, NormReLUPool) for m in network.modules()) == depth
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.randn(2, channels, *size)).shape == (2, classes)


@OPTIONS
def test_every_option_gives_a_network_that_can_be_differentiated_twice(norm, activation, pooling):
    network = ConvNet(1, 3, width=8, depth=2, image_size=(9, 12), norm=norm, activation=activation, pooling=pooling)
    logits = network(torch.randn(4, 1, 9, 12))
    grads = torch.autograd.grad(logits.square().sum(), list(network.parameters()), create_graph=True)
    sum(g.square().sum() for g in grads).backward()
    assert logits.shape == (4, 3)
    assert all(p.grad.isfinite().all() for p in network.parameters())


def alike(seed=0, **options):
    """Our ConvNet and PyTorch's layers, made from the same global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ours = ConvNet(3, 5, width=8, depth=2, image_size=(9, 12), **options)
        torch.manual_seed(seed)
        return ours.double(), PlainConvNet(3, 5, 8, (9, 12), **options).double()


@OPTIONS
def test_the_initial_values_and_their_names_are_those_of_pytorchs_layers_in_the_fields_order(norm, activation, pooling):
    ours, plain = alike(norm=norm, activation=activation, pooling=pooling)
    expected = plain.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in plain.named_parameters()]


@OPTIONS
def test_state_dicts_go_both_ways_and_give_the_same_outputs(norm, activation, pooling):
    images, options = normal(4, 3, 9, 12), {"norm": norm, "activation": activation, "pooling": pooling}
    for to_ours in (True, False):
        ours, _ = alike(seed=0, **options)
        _, plain = alike(seed=1, **options)
        given, taken = (plain, ours) if to_ours else (ours, plain)
        for tensor in given.state_dict().values():  # norms begin with ones and zeros, which any order would fit
            if tensor.is_floating_point():
                tensor += 0.1 * uniform(*tensor.shape)
        taken.load_state_dict(given.state_dict(), strict=True)
        assert relative_error(ours.eval()(images), plain.eval()(images)) < 1e-12
        assert relative_error(ours.train()(images), plain.train()(images)) < 1e-12


def test_the_fields_convnet_has_these_keys():
    keys = [name for name in ConvNet(3, 10).state_dict() if name.endswith("weight")]
    layers = [key.removesuffix(".weight") for key in keys]
    assert layers == [*(f"features.{i}" for i in (0, 1, 4, 5, 8, 9)), "classifier"]


@pytest.mark.parametrize("norm", ["instancenorm", "batchnorm"])
def test_resnet18_keeps_the_resolution_of_small_images(norm):
    network = resnet18(1, 7, (32, 32), norm=norm)
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert sum(p.numel() for p in resnet18(3, 10).parameters()) == 11_173_962  # 11.17 M, the CIFAR form


def test_networks_are_drawn_from_the_generator_and_leave_the_global_state_alone():
    def draw(seed):
        generator = seeds.generator(seed)
        network = create("convnet:width=4", channels=1, num_classes=3, image_size=(8, 8), generator=generator)
        return torch.nn.utils.parameters_to_vector(network.parameters())

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"norm": "instance"},
            "norm: expected one of instancenorm, batchnorm, layernorm, groupnorm, none, got 'instance'",
        ),
        ({"activation": "gelu"}, "activation: expected one of relu, leakyrelu, sigmoid, swish, got 'gelu'"),
        ({"pooling": "max"}, "pooling: expected one of avgpooling, maxpooling, none"),
        ({"depth": 6}, "image_size: expected at least 64 pixels a side for depth 6"),
        ({"depth": 0}, "depth: expected a whole number of at least 1, got 0"),
        ({"image_size": 32}, r"image_size: expected \(H, W\), got 32"),
        ({"image_size": (1, 32)}, "image_size: expected at least 2 pixels a side"),
        ({"width": 6, "norm": "groupnorm"}, "width: expected a multiple of 4 for groupnorm, got 6"),
        ({"channels": 0}, "channels: expected a whole number of at least 1"),
    ],
)
def test_impossible_options_are_refused_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ConvNet(**options)


def test_an_unknown_network_lists_what_exists():
    names = ", ".join(name for name in NETWORKS if ":" not in name)  # but for objects that other tests gave
    with pytest.raises(ValueError, match=f"network: expected one of {names}, torchvision:NAME or timm:NAME, got 'vgg'"):
        create("vgg", channels=3, num_classes=10, image_size=(32, 32), generator=seeds.generator(0))
    with pytest.raises(ValueError, match="norm: expected one of instancenorm, batchnorm"):
        resnet18(norm="none")
    with pytest.raises(ValueError, match="at least 16 pixels"):
        resnet18(image_size=(8, 8))


@pytest.mark.parametrize(
    "name, channels, size, parameters",
    [
        ("alexnet", 3, (32, 32), 1_872_202),  # the figures of the field's code for CIFAR-10 and MNIST
        ("lenet", 3, (32, 32), 62_006),
        ("mlp", 3, (32, 32), 411_146),
        ("vgg11", 3, (32, 32), 9_231_114),
        ("lenet", 1, (28, 28), 61_706),
        ("alexcifarnet", 3, (32, 32), 1_756_426),  # by hand: 5·5·c·64 + 64 twice, then 8·8·64 → 384 → 192 → 10
        # by hand: the 11,168,832 of ResNet-18's convolutions and norms, then 4·4·512 (28 px: 3·3·512) → 10
        ("resnet18_ap", 3, (32, 32), 11_250_762),
        ("resnet18_ap:norm=batchnorm", 3, (32, 32), 11_250_762),
        ("resnet18_ap", 1, (28, 28), 11_213_770),
        ("vgg11", 1, (28, 28), 9_229_962),
        # by hand: 3·3·c·w + w of each convolution, 2w of each norm, then 8·8·128 (28 px: 7·7·128) → 512 → 10
        ("smallvgg", 3, (32, 32), 4_441_482),
        ("smallvgg", 1, (28, 28), 3_457_866),
        ("smallvgg:width=8:norm=instancenorm:dropout=0", 3, (32, 32), 1_069_674),
        # by hand: 9,408 of patches, 192 + 65·192 of token and places, 6 · 297,024 of layers, 384 and 1,930 at the end
        ("vit", 3, (32, 32), 1_806_538),
        ("vit", 1, (28, 28), 1_806_538 - 2 * 16 * 192 - 15 * 192),
    ],
)
def test_evaluation_networks_have_their_cifar_forms(name, channels, size, parameters):
    network = create(name, channels=channels, num_classes=10, image_size=size, generator=seeds.generator(0))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.randn(2, channels, *size)).shape == (2, 10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(32, 48), (64, 64)])
def test_every_network_takes_larger_and_oblong_images(name, size):
    if name == "vit" and size == (32, 48):
        with pytest.raises(
            ValueError, match="expected square images of whole patches of 4 pixels for vit, got 32 × 48"
        ):
            create(name, channels=2, num_classes=3, image_size=size, generator=seeds.generator(0))
        return
    network = create(name, channels=2, num_classes=3, image_size=size, generator=seeds.generator(0))
    assert network(torch.randn(2, 2, *size)).shape == (2, 3)


def test_a_first_padding_is_that_of_the_convolution():
    network = ConvNet(1, 3, width=4, depth=1, image_size=(12, 12), first_padding=3)
    images = torch.randn(2, 1, 12, 12)
    convolution, layer, *_ = network.features
    z = torch.nn.functional.conv2d(images, convolution.weight, convolution.bias, padding=3)
    torch.testing.assert_close(network(images), network.classifier(layer(z).flatten(1)))


def test_options_are_written_behind_colons():
    def made(name):
        return create(name, channels=3, num_classes=10, image_size=(32, 32), generator=seeds.generator(0))

    assert made("convnet:depth=2:width=16").classifier.in_features == 16 * 8 * 8
    assert any(isinstance(m, nn.BatchNorm2d) for m in made("ResNet18:norm=batchnorm").modules())
    with pytest.raises(ValueError, match=r"network: expected options of width, depth, .* as convnet:name=value"):
        made("convnet:deep=2")
    with pytest.raises(ValueError, match="network: expected options of none as lenet:name=value"):
        made("lenet:width=2")
    with pytest.raises(ValueError, match="norm: expected one of instancenorm, batchnorm, got 'none'"):
        made("vgg11:norm=none")


def test_smallvgg_drops_out_as_many_percent_as_are_asked_for():
    def made(options):
        name = "smallvgg:width=8" + options
        return create(name, channels=1, num_classes=3, image_size=(28, 28), generator=seeds.generator(0))

    images = torch.randn(8, 1, 28, 28)
    for options, p in (("", 0.5), (":dropout=0", 0.0), (":dropout=30:norm=instancenorm", 0.3)):
        network = made(options)
        assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [p]
        assert torch.equal(network(images), network(images)) == (p == 0)
        assert any(isinstance(m, nn.BatchNorm2d) for m in network) == ("instancenorm" not in options)
    for option in ("100", "0.5", "-1"):
        with pytest.raises(ValueError, match=r"dropout: expected percent, a whole number from 0 to 99, got"):
            made(f":dropout={option}")


@pytest.mark.parametrize(
    "name, smallest", [("resnet18_ap", 16), ("vgg11", 32), ("smallvgg", 4), ("lenet", 16), ("alexnet", 8)]
)
def test_images_too_small_for_a_network_are_refused(name, smallest):
    arguments = {"channels": 1, "num_classes": 2, "generator": seeds.generator(0)}
    create(name, image_size=(smallest, smallest), **arguments)
    with pytest.raises(ValueError, match=f"expected at least {smallest} pixels a side for {name}"):
        create(name, image_size=(smallest - 1, smallest), **arguments)


def test_pooling_drops_odd_rows_down_to_a_last_map_of_one_pixel():
    for side in (32, 33, 63):  # the field's rule: five blocks at 32 px
        network = ConvNet(3, 4, width=8, depth=5, image_size=(side, side))
        assert network.classifier.in_features == 8
        assert network(torch.randn(2, 3, side, side)).shape == (2, 4)


@pytest.mark.parametrize(
    "name, size",
    [("convnet:width=4:depth=3", 8), ("convnet:width=4:depth=2:activation=swish", 9), ("alexcifarnet", 7)],
)
def test_image_gradients_of_the_fields_other_networks_are_exact(name, size):
    made = create(name, channels=2, num_classes=3, image_size=(size, size), generator=seeds.generator(0)).double()
    start = torch.nn.utils.parameters_to_vector(made.parameters()).detach()
    images = normal(3, 2, size, size, seed=1).requires_grad_()

    def gradient(adjoint):
        loss = match_trajectory(made, start, start + 0.1, images, torch.arange(3), 0.1, syn_steps=2, adjoint=adjoint)
        return torch.autograd.grad(loss, images)[0]

    assert relative_error(gradient(CheckpointedUnroll()), gradient(FullUnroll())) < 1e-9


@pytest.mark.parametrize("norm", ["instancenorm", "batchnorm"])
def test_the_fields_resnet18_with_average_pooling_has_these_keys_and_a_second_derivative(norm):
    network = create(
        f"resnet18_ap:norm={norm}", channels=1, num_classes=3, image_size=(16, 16), generator=seeds.generator(0)
    )
    keys = set(network.state_dict())
    assert {"conv1.weight", "bn1.weight", "layer2.0.shortcut.0.weight", "layer2.0.shortcut.2.bias"} <= keys
    assert {"layer4.1.conv2.weight", "classifier.bias"} <= keys and "layer1.0.shortcut.0.weight" not in keys
    weight = network.layer2[0].conv1.weight
    assert network.layer2[0].conv1.stride == (1, 1)
    images = torch.randn(2, 1, 16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(network(images).logsumexp(1).sum(), weight, create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), images)[0].abs().max() > 0


def test_parameters_of_a_network_that_pads_more_are_refused_with_what_to_give():
    """The field's code makes 28-px digits 32 px; of another width it is another network, without a word of padding."""
    theirs, ours = ConvNet(1, 10, 8, 3, (28, 28), first_padding=3), ConvNet(1, 10, 8, 3, (28, 28))
    with pytest.raises(RuntimeError, match=r"(?s)size mismatch for classifier.weight.*first_padding=3"):
        ours.load_state_dict(theirs.state_dict())
    with pytest.raises(RuntimeError) as caught:
        ours.load_state_dict(ConvNet(1, 10, 4, 3, (28, 28)).state_dict())
    assert "first_padding" not in str(caught.value)
    assert not ConvNet(1, 10, 8, 3, (28, 28), first_padding=3).load_state_dict(theirs.state_dict()).missing_keys


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_start_of_a_network_that_pads_more_is_refused_with_what_to_give(wrapped):
    """In the place of a loop of one's own; a start of any other size is refused without a word of padding."""
    theirs, ours = (ConvNet(1, 10, 8, 3, (28, 28), first_padding=padding) for padding in (3, 1))
    start = parameters_to_vector(theirs.parameters()).detach()
    student = torch.nn.DataParallel(ours) if wrapped else ours
    rest = {"images": torch.zeros(2, 1, 28, 28), "labels": torch.arange(2), "lr": 0.1, "syn_steps": 1}
    for given in (start, start.expand(3, -1)):
        with pytest.raises(ValueError, match=r"start: expected .* with P = \d+, got .*first_padding=3"):
            match_trajectory(student, given, given + 1, **rest)
    assert match_trajectory(theirs, start, start + 1, **rest) > 0
    for given in (start[:-1], start[:-10], torch.cat([start, start])):
        with pytest.raises(ValueError, match="start: expected") as caught:
            match_trajectory(student, given, given + 1, **rest)
        assert "first_padding" not in str(caught.value)
    ours.classifier = nn.Sequential(nn.Flatten(), ours.classifier)  # changed by its user
    with pytest.raises(ValueError, match=r"start: expected .* with P = \d+, got \[\d+\]$"):
        match_trajectory(student, start, start + 1, **rest)


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "smallvgg", "resnet18", "resnet18:norm=batchnorm", "resnet18_ap"])
def test_3x3_convolutions_of_stride_1_are_the_fast_ones_and_compute_the_same(name):
    network = create(name, channels=3, num_classes=10, image_size=(32, 32)).eval()
    plain, found = deepcopy(network), 0
    for of_fast, of_plain in zip(network.modules(), plain.modules(), strict=True):
        if isinstance(of_fast, nn.Conv2d) and (of_fast.kernel_size, of_fast.stride) == ((3, 3), (1, 1)):
            assert type(of_fast) is Conv3x3, of_fast
            of_plain.__class__, found = nn.Conv2d, found + 1
    x = normal(2, 3, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        expected = plain.double()(x.double())
        assert found >= 3 and relative_error(network(x), expected) < 1e-3
