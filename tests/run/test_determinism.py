"""Same seed, same bits: docs/numerics.md says where."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ddfast
from ddfast import ops
from ddfast.ops import add_rows
from ddfast.runtime import seeds
from tests.conftest import SMALL, normal

CSRC = Path(__file__).parents[2] / "csrc"
JOB = SMALL | {
    "iterations": 2,
    "num_eval": 1,
    "network": "convnet:width=16:depth=2",
    "batch_syn": 2,
    "batch_train": 480,
}
METHODS = {
    "fused": {"dsa_strategy": "color_crop_cutout_flip_scale_rotate"},
    "batch norm": {"network": "convnet:width=16:depth=2:norm=batchnorm", "dsa_strategy": "scale_rotate"},
    "dropout and max pooling": {"network": "smallvgg:width=4", "dsa_strategy": "flip_scale"},
    "soft labels": {"method": "datm", "ipc": 3, "segments": 2},
    "nearest states": {"method": "att"},
    "textures": {"method": "texture"},
    "adam and momentum": {"method": "simplified", "syn_momentum": 0.5, "batch_syn": None},
}


def bits(*tensors: torch.Tensor) -> str:
    """A checksum of the bytes of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def job_bits(name: str, output, device: str, **options) -> list[str]:
    """Of the experts, the set, the losses and the accuracies of a whole job."""
    result = ddfast.distill("digits", output=output, device=device, **JOB | METHODS[name] | options)
    config = ddfast.run.folder.RunFolder(output).read_config()
    store = ddfast.experts.TrajectoryStore(config["trained_experts"]["path"])
    snapshots = [store.snapshot(expert, store.epochs) for expert in range(store.num_experts)]
    images, labels, lr = result.synthetic.images, result.synthetic.labels, result.synthetic.lr
    words = [bits(*snapshots), bits(images, labels, lr)]
    return [*words, repr([record["loss"] for record in result.history]), repr(result.accuracy)]


TWO_COUNTS_OF_THREADS = """
    import os, sys, tempfile, torch
    from pathlib import Path
    from tests.run.test_determinism import METHODS, job_bits

    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name in ("fused", "batch norm", "dropout and max pooling", "soft labels"):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["DDFAST_CACHE"] = folder + "/cache"  # experts are trained anew
                print(threads, name, *job_bits(name, Path(folder) / "run", "cpu"), sep="; ", flush=True)
"""


def test_a_job_gives_the_same_bits_twice_with_one_thread_and_with_two():
    """Experts, distilled sets, losses and accuracies, in two processes."""
    code = "\n".join(line.strip() if line[:4].strip() else line[4:] for line in TWO_COUNTS_OF_THREADS.splitlines())
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait leave a shared core to others
    command = [sys.executable, "-c", code]
    outputs = [
        subprocess.run(command, env=environment, capture_output=True, text=True, cwd=CSRC.parent) for _ in range(2)
    ]
    assert not outputs[0].returncode, outputs[0].stderr
    lines = [output.stdout.splitlines() for output in outputs]
    assert len(lines[0]) == 2 * 4
    assert lines[0] == lines[1]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_job_gives_the_same_bits_twice_on_a_gpu(name, cuda_graph, tmp_path, monkeypatch):
    if not ops.has_kernel("dsa_augment", "cuda"):
        pytest.skip("the reference of dsa_augment adds with atomics on CUDA: build the kernels")
    found = []
    for run in ("first", "second"):
        monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / run / "cache"))
        found.append(job_bits(name, tmp_path / run / "run", "cuda", cuda_graph=cuda_graph))
    assert found[0] == found[1]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("adjoint", [ddfast.adjoints.CheckpointedUnroll, ddfast.adjoints.DetachedUnroll])
@pytest.mark.parametrize("network", ["convnet:width=32:depth=2", "convnet:width=32:depth=2:norm=batchnorm"])
def test_a_meta_gradient_gives_the_same_bits_twice_on_a_gpu(network, adjoint):
    net = ddfast.networks.create(
        network, channels=3, num_classes=4, image_size=(16, 16), generator=seeds.generator(0)
    ).cuda()
    start = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    batches = torch.randint(8, (6, 64), generator=seeds.generator(1)).cuda()  # every image many times

    def gradient():
        images = normal(8, 3, 16, 16, dtype=torch.float32, device="cuda").requires_grad_()
        labels = normal(8, 4, dtype=torch.float32, device="cuda").softmax(1).requires_grad_()
        lr = torch.tensor(0.05, device="cuda", requires_grad=True)
        with seeds.same_algorithms():
            loss = ddfast.match_trajectory(
                net, start, start + 0.01, images, labels, lr, batches=batches, adjoint=adjoint()
            )
            return bits(loss, *torch.autograd.grad(loss, (images, labels, lr)))

    assert gradient() == gradient()


def test_torchs_own_check_finds_nothing_and_memory_that_was_not_written_is_never_read(pair, tmp_path):
    """In torch's deterministic mode what must not be used raises, and fresh memory is filled with NaN."""
    plain = job_bits_of_pair(pair, tmp_path / "plain")
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        checked = job_bits_of_pair(pair, tmp_path / "checked")
    finally:
        torch.use_deterministic_algorithms(False)
    assert checked == plain


def job_bits_of_pair(pair, folder) -> list[str]:
    found = []
    for name in ("fused", "batch norm", "soft labels"):
        result = ddfast.distill(pair, output=folder / name, device="cpu", **JOB | METHODS[name])
        found.append(bits(result.synthetic.images, result.synthetic.labels, result.synthetic.lr))
    return found


def test_cudnn_is_deterministic_inside_and_as_it_was_after_an_error_too():
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    for found in ((False, True), (True, False)):
        try:
            cudnn.deterministic, cudnn.benchmark = found
            with seeds.same_algorithms():
                assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
                with seeds.same_algorithms(False):
                    assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
            with pytest.raises(ZeroDivisionError), seeds.same_algorithms():
                raise ZeroDivisionError
            assert (cudnn.deterministic, cudnn.benchmark) == found
        finally:
            cudnn.deterministic, cudnn.benchmark = before


def test_a_job_trains_distils_and_evaluates_with_deterministic_cudnn(pair, tmp_path, monkeypatch):
    seen = set()

    def watching(module, name):
        original = getattr(module, name)

        def watched(*args, **options):
            seen.add((name, torch.backends.cudnn.deterministic))
            return original(*args, **options)

        monkeypatch.setattr(module, name, watched)

    watching(ddfast.methods.MTT, "step")
    watching(ddfast.students.Training, "step")
    watching(ddfast.experts.train._Training, "_train_epoch")
    monkeypatch.setattr(ddfast.experts.train, "KEEP_SECONDS", 1e9)
    distilled = {}
    for wanted in (True, False):
        seen.clear()
        monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / f"cache{wanted}"))
        run = tmp_path / f"run{wanted}"
        distilled[wanted] = ddfast.distill(pair, output=run, device="cpu", deterministic=wanted, **SMALL)
        # one name for both trainings: of experts, and of the evaluation
        assert seen == {("step", wanted), ("step", True), ("_train_epoch", True)}
        assert not torch.backends.cudnn.deterministic
    assert torch.equal(distilled[True].synthetic.images, distilled[False].synthetic.images)  # a CPU has no cuDNN
    with pytest.raises(ValueError, match="deterministic: expected True or False, got 'yes'"):
        ddfast.distill(pair, output=tmp_path / "other", deterministic="yes", **SMALL)


@pytest.mark.skipif(not CSRC.is_dir(), reason="tests of an installed package, without its source")
def test_no_kernel_adds_with_atomics():
    sources = [path for path in CSRC.rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu")]
    assert len(sources) > 10
    assert not [path for path in sources if "tests" not in path.parts and "atomicAdd" in path.read_text()]


def test_rows_that_repeat_are_added_in_one_order(device):
    threads = torch.get_num_threads()
    indices = torch.randint(3, (4000,), generator=seeds.generator(0)).to(device)
    values = normal(4000, 50, dtype=torch.float32, device=device)
    try:
        torch.set_num_threads(2)
        sums = [add_rows(torch.zeros(3, 50, device=device), indices, values) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(total, sums[0]) for total in sums)
    exact = torch.stack([values.double()[indices == row].sum(0) for row in range(3)])
    torch.testing.assert_close(sums[0].double(), exact, rtol=1e-4, atol=1e-3)
    assert torch.equal(add_rows(torch.ones(2, 2), None, torch.ones(2, 2)), torch.full((2, 2), 2.0))


def test_the_reference_of_the_unroll_adds_images_that_repeat_in_one_order():
    net = ddfast.networks.create(
        "convnet:width=4:depth=1", channels=1, num_classes=3, image_size=(32, 32), generator=seeds.generator(0)
    )
    start = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    batches = torch.randint(2, (1, 64), generator=seeds.generator(1))
    threads, found = torch.get_num_threads(), set()
    try:
        torch.set_num_threads(2)
        for _ in range(3):
            images = normal(2, 1, 32, 32).float().requires_grad_()
            with ops.reference_mode():
                loss = ddfast.match_trajectory(net, start, start + 0.01, images, torch.arange(2), 0.1, batches=batches)
                found.add(bits(*torch.autograd.grad(loss, images)))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
