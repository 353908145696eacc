"""Networks in other code's wrappers: the same as the bare network, or refused by the wrapper's name."""

import contextlib
import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim.swa_utils import AveragedModel

import ddfast
from ddfast.engine.adjoints import CheckpointedUnroll, DetachedUnroll, FullUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.students import ConvNetStudent, ModuleStudent, student_of, unwrapped, why_not_fused
from tests.conftest import normal, relative_error
from tests.networks_for_tests import SIDE, K, PlainConvNet, make

EXACT = 1e-9  # float64, against the bare network


class Reparametrised(nn.Module):
    """A network whose parameters are views of one flat parameter, in the way of the field's ReparamModule: plain
    attributes, put in their places anew in each forward."""

    def __init__(self, network):
        super().__init__()
        self.module = network
        places, seen = [], {}
        for layer in self.modules():
            for name, parameter in list(layer.named_parameters(recurse=False)):
                places.append((layer, name, seen.setdefault(parameter, len(seen))))
                delattr(layer, name)
        self.places, self.shapes = places, [parameter.shape for parameter in seen]
        self.flat_param = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in seen]))
        self.bind(self.flat_param)

    def bind(self, flat):
        pieces = flat.split([shape.numel() for shape in self.shapes])
        for layer, name, which in self.places:
            setattr(layer, name, pieces[which].view(self.shapes[which]))

    def forward(self, images, flat_param=None):
        self.bind(torch.squeeze(flat_param))
        try:
            return self.module(images)
        finally:
            self.bind(self.flat_param)


class Flat(nn.Module):
    """A network made flat itself: the layers' parameters are views of its only one."""

    def __init__(self):
        super().__init__()
        network = PlainConvNet(3, K, 4, (SIDE, SIDE)).double()
        self.features, self.classifier = network.features, network.classifier
        inside = Reparametrised(network)
        self.flat_param = inside.flat_param

    def forward(self, images):
        return self.classifier(self.features(images).flatten(1))


class Tied(nn.Module):
    """Two layers of one weight, and a layer without bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.second, self.third = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third.weight = self.second.weight
        self.head = nn.Linear(4, K)

    def forward(self, images):
        maps = torch.tanh(self.second(torch.tanh(self.first(images))))
        return self.head(torch.tanh(self.third(maps)).mean((2, 3)))


@contextlib.contextmanager
def one_process():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "AveragedModel": AveragedModel,
    "compiled": torch.compile,
    "ReparamModule": Reparametrised,
    "parallel ReparamModule": lambda network: nn.DataParallel(Reparametrised(network)),
    "compiled parallel": lambda network: torch.compile(nn.DataParallel(network)),
    "moved ReparamModule": lambda network: Reparametrised(network.float()).double(),
}
NETWORKS = ("convnet", "convnet-batchnorm", "dropout", "tied")


def network_of(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tied().double() if name == "tied" else make(name)


def gradients(network, start, adjoint=None, **options):
    images = normal(4, 3, SIDE, SIDE, seed=1).requires_grad_()
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    start, labels = start.clone().requires_grad_(), torch.arange(4) % K
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        last = ddfast.unroll(network, start, images, labels, lr, syn_steps=3, adjoint=adjoint, **options)
        grads = torch.autograd.grad((last * normal(*last.shape, seed=2)).sum(), (start, images, lr))
    return [last, *grads]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_network_is_the_one_inside(name, wrapper):
    bare = network_of(name)
    start = parameters_to_vector(bare.parameters()).detach()
    expected = gradients(bare, start)
    with one_process() if wrapper.startswith("Dist") else contextlib.nullcontext():
        wrapped = WRAPPERS[wrapper](network_of(name))
        if "Reparam" in wrapper:
            flat = next(wrapped.parameters()).detach()
            assert torch.equal(flat.float(), start.float())  # the same layout; one was in float32 in between
        got = gradients(wrapped, start)
        inside = unwrapped(wrapped)
    assert [n for n, _ in inside.named_parameters()] == [n for n, _ in bare.named_parameters()]
    assert why_not_fused(inside) == why_not_fused(bare) and type(inside) is type(bare)
    assert all(relative_error(g, e) < EXACT for g, e in zip(got, expected, strict=True))
    assert len(list(inside.buffers())) == len(list(bare.buffers()))
    ours = [b for n, b in wrapped.named_buffers() if "n_averaged" not in n]
    assert all(torch.equal(a, b) for a, b in zip(ours, bare.buffers(), strict=True))  # batch norm's, updated


@pytest.mark.parametrize("wrapper", ["DataParallel", "compiled", "parallel ReparamModule"])
@pytest.mark.parametrize("adjoint", [FullUnroll(), DetachedUnroll(), CheckpointedUnroll(plan=Plan(micro_batch=3))])
def test_every_adjoint_takes_wrapped_networks(wrapper, adjoint):
    bare = network_of("tied")
    start = parameters_to_vector(bare.parameters()).detach()
    got = gradients(WRAPPERS[wrapper](network_of("tied")), start, adjoint)
    for g, e in zip(got, gradients(bare, start, adjoint), strict=True):
        assert relative_error(g, e) < EXACT


@pytest.mark.parametrize("wrapper", [nn.DataParallel, torch.compile, Reparametrised])
def test_a_wrapped_convnet_is_fused(wrapper):
    assert isinstance(student_of(wrapper(make("convnet"))), ConvNetStudent)
    assert ConvNetStudent(wrapper(make("convnet"))).layer_sizes == ConvNetStudent(make("convnet")).layer_sizes
    assert isinstance(student_of(wrapper(make("dropout"))), ModuleStudent)


def test_the_layerwise_distance_sees_the_layers_inside():
    bare = make("dropout").eval()
    start = parameters_to_vector(bare.parameters()).detach()
    images, labels = normal(4, 3, SIDE, SIDE, seed=1), torch.arange(4) % K
    losses = [
        ddfast.match_trajectory(net, start, start + 0.1, images, labels, 0.1, syn_steps=1, distance="layerwise")
        for net in (bare, nn.DataParallel(bare), Reparametrised(copy.deepcopy(bare)))
    ]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def test_a_wrapped_network_is_used_in_the_mode_that_it_is_in():
    wrapped = Reparametrised(make("dropout"))
    start = wrapped.flat_param.detach()
    trained, evaluated = gradients(wrapped, start)[0], gradients(wrapped.eval(), start)[0]
    assert not torch.equal(trained, evaluated)
    assert torch.equal(evaluated, gradients(make("dropout").eval(), start)[0])


def test_the_wrapper_is_left_as_it_was():
    wrapped = Reparametrised(make("convnet"))
    before, start = wrapped.flat_param, wrapped.flat_param.detach().clone()
    gradients(wrapped, start)
    assert wrapped.flat_param is before and torch.equal(before, start)
    assert wrapped.module.classifier.weight._base is before
    assert wrapped(normal(2, 3, SIDE, SIDE), flat_param=before).shape == (2, K)


def test_a_network_that_is_flat_itself_is_that_of_its_layers():
    torch.manual_seed(0)
    network = Flat()
    start = network.flat_param.detach()
    bare = PlainConvNet(3, K, 4, (SIDE, SIDE)).double()
    for g, e in zip(gradients(network, start), gradients(bare, start), strict=True):
        assert relative_error(g, e) < EXACT


def test_compiled_layers_and_functions_inside_run_as_they_were_before():
    def inside_out(network, how):
        network.features = how(network.features)
        network.forward = how(network.forward)
        return network

    bare, compiled = PlainConvNet(3, K, 4, (SIDE, SIDE)).double(), PlainConvNet(3, K, 4, (SIDE, SIDE)).double()
    start = parameters_to_vector(bare.parameters()).detach()
    in_place = copy.deepcopy(bare)
    in_place.compile(backend="aot_eager")
    expected = gradients(bare, start)
    for network in (inside_out(compiled, lambda f: torch.compile(f, backend="aot_eager")), in_place):
        for g, e in zip(gradients(network, start), expected, strict=True):
            assert relative_error(g, e) < EXACT


def test_one_line_says_why_a_wrapped_network_is_not_fused(caplog):
    network = Reparametrised(make("dropout").eval())
    start = network.flat_param.detach()
    with caplog.at_level(logging.INFO, "ddfast"):
        for _ in range(2):
            gradients(network, start)
    assert [record.getMessage() for record in caplog.records] == [
        "_Dropout runs by autograd: _Dropout is not a networks.ConvNet"
    ]


def of_another_order():
    network = Reparametrised(make("convnet"))
    layers = [network.module.classifier, network.module.features[0]]
    network.places = [place for layer in layers for place in network.places if place[0] is layer] + [
        place for place in network.places if place[0] not in layers
    ]
    order = [which for *_, which in network.places]
    network.shapes = [network.shapes[which] for which in order]
    network.places = [(layer, name, place) for place, (layer, name, _) in enumerate(network.places)]
    network.bind(network.flat_param)
    return network


def without_views():
    network = Reparametrised(make("convnet"))
    for layer, name, _ in network.places:
        setattr(layer, name, getattr(layer, name).detach().clone())
    return network


def with_hooks():
    network = nn.DataParallel(make("convnet"))
    network.register_forward_hook(lambda module, images, logits: 2 * logits)
    return network


def parallel_inside():
    network = make("convnet")
    network.features = nn.DataParallel(network.features)
    network.features.device_ids = [0, 1]
    return network


class FullyShardedDataParallel(nn.Linear):
    """Known by its name and package: none is made without a group of processes."""

    __module__ = "torch.distributed.fsdp.fully_sharded_data_parallel"


def sharded_in_place():
    """As fully_shard does: the class is another one, and stays a subclass of the network's own."""
    network = nn.Linear(3, 2)
    marker = type("FSDPModule", (), {"__module__": "torch.distributed.fsdp"})
    network.__class__ = type("FSDPLinear", (marker, nn.Linear), {})
    return network


REFUSED = {
    "scripted": (lambda: torch.jit.script(nn.Linear(3, 2)), "the network is a RecursiveScriptModule"),
    "traced": (
        lambda: torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)),
        r"the network is a TopLevelTracedModule.*give the module that was scripted or traced",
    ),
    "a scripted layer": (
        lambda: nn.Sequential(nn.Flatten(), torch.jit.script(nn.Linear(3, 2))),
        "its layer 1 is a RecursiveScriptModule",
    ),
    "sharded": (lambda: FullyShardedDataParallel(3, 2), "the network is sharded by FSDP"),
    "sharded in place": (sharded_in_place, "the network is sharded by FSDP"),
    "sharded layers": (lambda: nn.Sequential(FullyShardedDataParallel(3, 2)), "its layer 0 is sharded by FSDP"),
    "layers on several devices": (parallel_inside, "its layer features is a DataParallel"),
    "a flat layer": (
        lambda: nn.Sequential(Reparametrised(nn.Linear(3, 2)), nn.Linear(2, 2)),
        "its layer 0 is a Reparametrised with a flat_param",
    ),
    "another order": (of_another_order, "the Reparametrised has its parameters in another order"),
    "no views": (without_views, "the Reparametrised has a flat_param of which its layers hold no views"),
    "hooks": (with_hooks, "the DataParallel has hooks"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("way", [student_of, ModuleStudent, ConvNetStudent, why_not_fused, "unroll"])
def test_a_wrapper_that_cannot_be_taken_off_is_refused_by_its_name(kind, way):
    make_network, message = REFUSED[kind]
    network = make_network()
    with pytest.raises((TypeError, ValueError), match=f"^student: {message}"):
        if way == "unroll":
            images = torch.zeros(2, 3, SIDE, SIDE)
            ddfast.unroll(network, torch.zeros(8), images, torch.arange(2), 0.1, syn_steps=1)
        else:
            way(network)


@pytest.mark.parametrize("how", ["detached", "without a graph", "copied"])
def test_logits_that_see_no_parameter_are_refused(how):
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * SIDE * SIDE, K).double()
            self.mine = [self.head.weight.detach().clone()]

        def forward(self, images):
            if how == "without a graph":
                with torch.no_grad():
                    return self.head(images.flatten(1))
            weight = self.mine[0] if how == "copied" else self.head.weight.detach()
            return images.flatten(1) @ weight.T

    network = Blind()
    with pytest.raises(ValueError, match="student: the logits of Blind depend on none of its parameters"):
        gradients(network, parameters_to_vector(network.parameters()).detach())


def test_a_module_of_one_vector_is_no_wrapper():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(K))
            self.first = torch.arange(2 * K).double()[K:]

        def forward(self, images):
            return images.mean((1, 2, 3))[:, None] * self.weight + self.first

    network = Scale().double()
    assert unwrapped(network) is network
    assert gradients(network, network.weight.detach())[1].abs().max() > 0


def test_tied_parameters_take_a_memory_budget():
    network = network_of("tied")
    start = parameters_to_vector(network.parameters()).detach()
    expected = gradients(network, start, FullUnroll())
    for got, wanted in zip(gradients(network, start, CheckpointedUnroll("1GiB")), expected, strict=True):
        assert relative_error(got, wanted) < EXACT
