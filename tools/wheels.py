"""Builds the source distribution and a wheel for each torch, and tests wheels in environments without a compiler.

    python -m tools.wheels                                              # the newest torch and the oldest supported
    python -m tools.wheels --torch 2.14 --kernels cuda --python python3.10 python3.13

A wheel runs with the torch that it was built for, and with every Python: its version names the torch and the kernels
(0.2.0+torch2.14cu130), its metadata asks for that torch. It is built with the first Python and tested with all.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
OLDEST_TORCH = "2.11"
BUILD_REQUIREMENTS = ["setuptools>=77", "ninja", "numpy", "build"]
FREE_DISK = 10  # GB: a torch with its CUDA libraries takes 5.4, and its download 2.5 for a while
# An installation that is tested: where the package is, that its kernels are there, and that nothing can be compiled.
CHECK = """
import shutil, sys
from importlib import metadata
import ddfast
about = ddfast.build_info()
assert ddfast.__file__.startswith(sys.prefix), ddfast.__file__
assert about["extension"] is not None, about["missing"]
assert all("cpu" in devices for devices in about["kernels"].values()), about["kernels"]
assert "{kernels}" == "cpu" or all("cuda" in devices for devices in about["kernels"].values()), about["kernels"]
assert not any(shutil.which(name) for name in ("c++", "g++", "gcc", "cc", "clang", "nvcc")), "a compiler is on PATH"
print(metadata.version("ddfast"), "with torch", about["versions"]["torch"], "and Python", sys.version.split()[0])
"""
# Half a minute on a core, without kernels too: experts, images, evaluation.
JOB = (
    "distill --iterations 3 --num-experts 2 --train-epochs 2 --expert-epochs 1 --max-start-epoch 1 --syn-steps 3"
    " --num-eval 2 --eval-epochs 3"
)
JOB_ENDS_WITH = (0, 3)  # 3: images no better than random real ones, which so few iterations may give


def minor_of(torch: str) -> str:
    """The minor version of a torch: "2.14" of "2.14.1+cu130"."""
    return ".".join(torch.partition("+")[0].split(".")[:2])


def requirement(torch: str) -> str:
    """What pip is asked for: any release of a minor version, or the newest of all."""
    return f"torch>={OLDEST_TORCH}" if torch == "newest" else pin(torch)


def pin(minor: str) -> str:
    """The torch that a wheel built for `minor` can be loaded with: "torch>=2.14,<2.15"."""
    major, _, number = minor.partition(".")
    return f"torch>={minor},<{major}.{int(number) + 1}"


def local_version(torch: str, cuda: str | None) -> str:
    """What follows the + of a wheel's version; `cuda`: the CUDA of its kernels, None for CPU kernels only."""
    return f"torch{minor_of(torch)}" + ("cpu" if cuda is None else "cu" + cuda.replace(".", ""))


def pinned(pyproject: str, torch: str, cuda: str | None) -> str:
    """The text of pyproject.toml with the version and the requirements of a wheel."""
    version = re.compile(r'^version = "([^"+]+)"$', re.MULTILINE)
    required = re.compile(r'"torch>=[^"]*"')
    found = len(version.findall(pyproject)), len(required.findall(pyproject))
    if found != (1, 2):  # to build with, and to run with
        raise ValueError(f"pyproject.toml: expected one version and two requirements of torch, got {found}")
    named = version.sub(rf'version = "\1+{local_version(torch, cuda)}"', pyproject)
    return required.sub(f'"{pin(minor_of(torch))}"', named)


def without_compiler(environment: dict[str, str], bin_folder: Path) -> dict[str, str]:
    """An environment in which nothing outside `bin_folder` is found, nor another ddfast."""
    dropped = ("PYTHONPATH", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "DDFAST_EXTENSION")
    kept = {name: value for name, value in environment.items() if name not in dropped}
    return {**kept, "PATH": str(bin_folder), "CC": "/bin/false", "CXX": "/bin/false"}


def run(*command: str | Path, **options) -> None:
    print("+", *command, file=sys.stderr, flush=True)
    subprocess.run(command, check=True, **options)


def answer(*command: str | Path, **options) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout.strip()


@contextmanager
def environment(python: str) -> Iterator[Path]:
    """The bin folder of a new virtual environment, which is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="ddfast-wheels-") as folder:
        if shutil.disk_usage(folder).free < FREE_DISK * 1e9:
            sys.exit(f"{folder}: expected {FREE_DISK} GB of free disk for an environment with torch; set TMPDIR")
        run(python, "-m", "venv", folder)
        bin_folder = Path(folder, "bin")
        run(bin_folder / "python", "-m", "pip", "install", "--quiet", "--upgrade", "pip")
        yield bin_folder


def sdist(python: Path, folder: Path) -> Path:
    """Build the source distribution of the checkout into `folder`; this needs no torch."""
    run(python, "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check", "--outdir", folder, ROOT,
        env={**os.environ, "DDFAST_BUILD": "none"}, stdout=subprocess.DEVNULL)  # fmt: skip
    return max(folder.glob("ddfast-*.tar.gz"), key=lambda path: path.stat().st_mtime)


def build(python: str, torch: str, kernels: str, output: Path) -> Path:
    """Build the wheel for a torch, from a source distribution of the checkout."""
    with environment(python) as bin_folder, tempfile.TemporaryDirectory() as scratch:
        inside = bin_folder / "python"
        run(inside, "-m", "pip", "install", "--quiet", requirement(torch), *BUILD_REQUIREMENTS)
        output.mkdir(parents=True, exist_ok=True)
        with tarfile.open(sdist(inside, output)) as archive:
            archive.extractall(scratch)  # what this script has just written
        (source,) = (path for path in Path(scratch).iterdir() if path.is_dir())

        # setup.py says in a line which kernels it builds; the version has to be written before it builds them.
        settings = {**os.environ, "DDFAST_BUILD": "" if kernels == "auto" else kernels}
        said = answer(inside, "setup.py", "--name", cwd=source, env=settings, stderr=subprocess.STDOUT)
        version, cuda = answer(inside, "-c", "import torch; print(torch.__version__, torch.version.cuda)").split()
        pyproject = source / "pyproject.toml"
        text = pinned(pyproject.read_text(), version, cuda if "and CUDA kernels for" in said else None)
        pyproject.write_text(text)

        built = Path(scratch, "wheel")
        run(inside, "-m", "build", "--wheel", "--no-isolation", "--outdir", built, source, env=settings)
        (wheel,) = built.glob("*.whl")
        return Path(shutil.copy(wheel, output))


def test(python: str, wheel: Path) -> None:
    """Install a wheel where there is nothing else, and run the tests of the ops and a short job."""
    kernels = "cpu" if "cpu-" in wheel.name else "cuda"
    print(f"testing {wheel.name} with {python}", file=sys.stderr)
    with environment(python) as bin_folder, tempfile.TemporaryDirectory() as elsewhere:
        inside = bin_folder / "python"
        bare = without_compiler(dict(os.environ), bin_folder)
        options = {"cwd": elsewhere, "env": {**bare, "DDFAST_CACHE": str(Path(elsewhere, "cache"))}}
        run(inside, "-m", "pip", "install", "--quiet", wheel.resolve(), "pytest", **options)
        run(inside, "-m", "pip", "check", **options)
        run(inside, "-c", CHECK.replace("{kernels}", kernels), **options)
        shutil.copytree(ROOT / "tests", Path(elsewhere, "tests"))
        shutil.copy(ROOT / "pyproject.toml", elsewhere)  # settings of pytest
        run(inside, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "tests/ops", **options)
        job = subprocess.run([bin_folder / "ddfast", *JOB.split(), "--output", "run"], **options)
        if job.returncode not in JOB_ENDS_WITH or not Path(elsewhere, "run", "images.png").exists():
            sys.exit(f"ddfast {JOB}: expected images and exit status 0 or 3, got {job.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="COMMAND")
    parser.add_argument("--torch", nargs="+", default=["newest", OLDEST_TORCH], metavar="MINOR")
    parser.add_argument("--kernels", choices=["auto", "cpu", "cuda"], default="auto", help="as DDFAST_BUILD")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="FOLDER")
    options = parser.parse_args()

    rows = []
    for torch in options.torch:
        began = time.monotonic()
        wheel = build(options.python[0], torch, options.kernels, options.output)
        rows.append(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB, built in {time.monotonic() - began:.0f} s")
        for python in options.python:
            began = time.monotonic()
            test(python, wheel)
            rows.append(f"  tested with {python} in {time.monotonic() - began:.0f} s")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
