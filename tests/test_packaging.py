"""What is released: one version everywhere, a source distribution that builds, wheels that name their torch."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from ddfast.ops import EXTENSION
from tools import wheels

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_pyproject_changelog_and_citation_name_one_version():
    version = re.search(r'^version = "(.*)"$', PYPROJECT, re.MULTILINE).group(1)
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1) == version
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == version


def test_a_source_distribution_has_all_that_a_build_needs(tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path],
        cwd=ROOT,
        env={"DDFAST_BUILD": "none", "PATH": ""},
        check=True,
        capture_output=True,
        timeout=300,
    )
    (archive,) = tmp_path.glob("ddfast-*.tar.gz")
    with tarfile.open(archive) as files:
        inside = {name.partition("/")[2] for name in files.getnames()}
    needed = [ROOT / name for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "CMakeLists.txt")]
    needed += [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    needed += [
        path
        for path in (ROOT / "ddfast").rglob("*")
        if path.suffix in (".py", ".toml", ".typed", ".html", ".js", ".css")
    ]
    assert {path.relative_to(ROOT).as_posix() for path in needed} - inside == set()
    assert not [name for name in inside if name.endswith((".so", ".o", ".pyc"))]


@pytest.mark.parametrize(
    "torch, cuda, version, torches",
    [
        ("2.14.1+cu130", "13.0", "torch2.14cu130", "torch>=2.14,<2.15"),
        ("2.11.0", None, "torch2.11cpu", "torch>=2.11,<2.12"),
        ("2.9.1+cpu", None, "torch2.9cpu", "torch>=2.9,<2.10"),
    ],
)
def test_a_wheel_names_and_requires_the_torch_that_it_was_built_for(torch, cuda, version, torches):
    text = wheels.pinned(PYPROJECT, torch, cuda)
    assert re.search(r'^version = "\d+\.\d+\.\d+\+(.*)"$', text, re.MULTILINE).group(1) == version
    assert re.findall(r'"(torch[><=][^"]*)"', text) == [torches, torches]
    changed = [a for a, b in zip(PYPROJECT.splitlines(), text.splitlines(), strict=True) if a != b]
    assert len(changed) == 3


def test_a_pyproject_whose_requirements_have_moved_is_refused():
    with pytest.raises(ValueError, match="expected one version and two requirements of torch"):
        wheels.pinned(PYPROJECT.replace('"torch>=', '"pytorch>='), "2.14.1", None)


def test_the_oldest_torch_that_wheels_are_built_for_is_the_oldest_that_is_supported():
    assert wheels.requirement("newest") in re.findall(r'"(torch>=[^"]*)"', PYPROJECT)
    assert wheels.requirement("2.14") == "torch>=2.14,<2.15"


def test_wheels_are_tested_where_no_compiler_and_no_other_ddfast_is_found():
    bare = wheels.without_compiler({"PATH": "/usr/bin", "CUDA_HOME": "/cuda", "PYTHONPATH": "/x", "HOME": "/h"}, ROOT)
    assert bare == {"HOME": "/h", "PATH": str(ROOT), "CC": "/bin/false", "CXX": "/bin/false"}


@pytest.mark.skipif(EXTENSION is None, reason="without the extension")
def test_one_binary_serves_every_python():
    """Another name is that of an older build in this folder, which Python loads first."""
    assert EXTENSION.__file__.endswith("_C.abi3.so")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_of_the_makefile(path):
    steps = [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]
    called = re.findall(r"\bmake (\w+)", " ".join(step.get("run", "") for step in steps))
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert called and set(called) <= set(targets)
