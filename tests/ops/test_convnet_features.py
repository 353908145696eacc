"""convnet_features against the module, its derivative against autograd, and both kernels against the reference."""

import statistics

import pytest
import torch
from torch.nn.utils import vector_to_parameters

from ddfast.ops import ConvNetLayout, convnet_features, reference_mode
from tests.conftest import normal, relative_error
from tests.ops.test_convnet import CASES, EXACT, FAST, ROUNDED, cases, references, run


def by_module(case, parameters, images):  # [S, P], [(S,) B, C, H, W] -> [S, B, F]
    found = []
    for s, row in enumerate(parameters):
        network = case.network()
        vector_to_parameters(row.clone(), network.parameters())
        network.classifier = torch.nn.Identity()
        found.append(network.requires_grad_(False)(images if images.dim() == 4 else images[s]))
    return torch.stack(found)


def both(function, case, images):
    images = images.detach().requires_grad_()
    features = function(images)
    along = case.cotangent(features.dtype).to(features.device)
    return features.detach(), torch.autograd.grad(features, images, along)[0]


@references
@pytest.mark.parametrize("own", [False, True], ids=["shared images", "own images"])
@cases
def test_features_and_their_derivative_are_the_modules(case, own, reference, device):
    parameters, images, *_ = case.inputs(device=device)
    if own:
        images = normal(case.students, *images.shape, seed=5, device=device)
    expected = both(lambda x: by_module(case, parameters.cpu(), x), case, images.cpu())
    got = run(reference, both, lambda x: convnet_features(parameters, x, case.layout), case, images)
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) < EXACT


@pytest.mark.parametrize("own", [False, True], ids=["shared images", "own images"])
@pytest.mark.parametrize("case", FAST.values(), ids=FAST)
def test_the_fast_kernels_are_as_close_as_rounding_allows(case, own):
    """The median over draws: a ReLU that switches moves some results by far more than rounding."""
    errors = []
    for seed in range(5):
        parameters, images, *_ = (t + 0.01 * normal(*t.shape, seed=seed) for t in case.inputs(soft=True))
        if own:
            images = images + 0.1 * normal(case.students, *images.shape, seed=seed)
        exact = both(lambda x, p=parameters: convnet_features(p, x, case.layout), case, images)
        rounded = parameters.float()
        got = both(lambda x, p=rounded: convnet_features(p, x, case.layout), case, images.float())
        errors.append(max(relative_error(g, e) for g, e in zip(got, exact, strict=True)))
    assert statistics.median(errors) < ROUNDED


def test_kernel_and_reference_agree_in_bfloat16():
    parameters, images, *_ = CASES["students"].inputs(dtype=torch.float32)
    layout = ConvNetLayout(8, 2, 5, precision="bfloat16")
    got = convnet_features(parameters, images, layout)
    with reference_mode():
        expected = convnet_features(parameters, images, layout)
    assert got.dtype == torch.float32 and relative_error(got, expected) < 2e-2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_has_the_layout_of_the_images(layout):
    case = CASES["colour"]
    parameters, images, *_ = case.inputs()
    features, gradient = both(
        lambda x: convnet_features(parameters, x, case.layout), case, images.contiguous(memory_format=layout)
    )
    assert features.is_contiguous() and gradient.is_contiguous(memory_format=layout)


def test_it_is_differentiable_once_and_in_the_images_alone():
    case = CASES["grey"]
    parameters, images, *_ = case.inputs()
    images.requires_grad_()
    function = lambda x: convnet_features(parameters, x, case.layout)  # noqa: E731
    assert torch.autograd.gradcheck(function, images, fast_mode=True)
    (first,) = torch.autograd.grad(function(images).square().sum(), images, create_graph=True)
    with pytest.raises(NotImplementedError, match="convnet_features: second derivatives are not available"):
        torch.autograd.grad(first.sum(), images)
    parameters.requires_grad_()
    with pytest.raises(NotImplementedError, match="not differentiable in the parameters; detach them"):
        torch.autograd.grad(function(images).sum(), images)


def test_what_does_not_fit_is_refused():
    case = CASES["colour"]
    parameters, images, *_ = case.inputs()
    with pytest.raises(ValueError, match="take a ConvNet of"):
        convnet_features(parameters[:, :-1], images, case.layout)
    for reference in (False, True):
        with pytest.raises(ValueError, match=r"cotangent: expected .*got \[?\(?1, 4, 1"):
            run(
                reference,
                torch.ops.ddfast.convnet_features_backward,
                normal(1, 4, 1),
                parameters,
                images,
                *case.layout.sizes,
            )
