"""The memory limits that hold for a process, read from files as Linux shows them."""

import os
import resource
import subprocess
import sys

import pytest
import torch

from ddfast.runtime import devices, memory_limits
from ddfast.runtime.memory_limits import left_by_limits

GB = 10**9
V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "36 25 0:31 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
NONE_V1 = str(2**63 - 4096)


@pytest.fixture(autouse=True)
def unlimited(monkeypatch):
    """No resource limits but those that a test sets."""
    limits = {}
    monkeypatch.setattr(
        memory_limits.resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY),) * 2
    )
    return limits


def tree(root, mountinfo, cgroup, **files):
    """A /proc and a /sys: files by path below /sys/fs/cgroup, with __ for a slash and _ for a dot."""
    everything = {"proc/self/mountinfo": mountinfo, "proc/self/cgroup": cgroup}
    for name, text in files.items():
        everything["sys/fs/cgroup/" + name.replace("__", "/").replace("_dot_", ".")] = str(text)
    for name, text in everything.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder, most, used, high="max", stat=""):
    """The files of a group of version 2."""
    prefix = f"{folder}__" if folder else ""
    values = {"max": most, "high": high, "current": used}
    return {f"{prefix}memory_dot_{name}": value for name, value in values.items()} | (
        {f"{prefix}memory_dot_stat": stat} if stat else {}
    )


def test_without_limits_there_is_none(tmp_path):
    assert left_by_limits(tmp_path) is None
    assert left_by_limits(tree(tmp_path, V2, "0::/\n", **group("", "max", GB))) is None


def test_the_groups_own_limit_below_the_root_is_seen(tmp_path):
    """As systemd and Slurm set it."""
    files = group("job", 8 * GB, 3 * GB) | group("", "max", 50 * GB)
    assert left_by_limits(tree(tmp_path, V2, "0::/job\n", **files)) == 5 * GB


def test_of_nested_groups_the_tightest_counts(tmp_path):
    files = group("a", 4 * GB, 3 * GB) | group("a__b", 8 * GB, GB) | group("a__b__c", "max", GB)
    assert left_by_limits(tree(tmp_path, V2, "0::/a/b/c\n", **files)) == GB


def test_memory_high_slows_down_and_counts_as_a_limit(tmp_path):
    assert left_by_limits(tree(tmp_path, V2, "0::/a\n", **group("a", 8 * GB, GB, high=3 * GB))) == 2 * GB


def test_file_cache_that_is_given_back_is_free(tmp_path):
    files = group("a", 8 * GB, 7 * GB, stat=f"anon {GB}\ninactive_file {5 * GB}\nactive_file 7\n")
    assert left_by_limits(tree(tmp_path, V2, "0::/a\n", **files)) == 6 * GB


def test_a_group_that_uses_more_than_it_may_leaves_nothing(tmp_path):
    assert left_by_limits(tree(tmp_path, V2, "0::/a\n", **group("a", GB, 2 * GB))) == 0


@pytest.mark.parametrize("path", ["/docker/1234", "/../..", "/"])
def test_in_a_container_the_mount_is_the_group_whatever_the_path_says(tmp_path, path):
    assert left_by_limits(tree(tmp_path, V2, f"0::{path}\n", **group("", 2 * GB, GB))) == GB


def test_a_mount_of_a_part_of_the_groups(tmp_path):
    mount = V2.replace(" / /sys", " /docker/1234 /sys")
    files = group("", 9 * GB, GB) | group("inner", 2 * GB, GB)
    assert left_by_limits(tree(tmp_path, mount, "0::/docker/1234/inner\n", **files)) == GB


def version_1(folder, limit, used, cache=0):
    prefix = f"memory__{folder}" if folder else "memory__"
    values = {"limit_in_bytes": limit, "usage_in_bytes": used, "stat": f"cache 5\ntotal_inactive_file {cache}\n"}
    return {f"{prefix}memory_dot_{name}": value for name, value in values.items()}


def test_version_1_nested_with_its_huge_numbers_for_none(tmp_path):
    files = version_1("", NONE_V1, GB) | version_1("job__", 6 * GB, 4 * GB, GB) | version_1("job__step__", NONE_V1, GB)
    cgroup = "11:cpu,cpuacct:/else\n5:memory:/job/step\n1:name=systemd:/else\n"
    assert left_by_limits(tree(tmp_path, V1, cgroup, **files)) == 3 * GB


def test_hybrid_the_version_that_has_memory_counts(tmp_path):
    unified = V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    files = version_1("job__", 3 * GB, GB)
    (tmp_path / "sys/fs/cgroup/unified/user").mkdir(parents=True)
    assert left_by_limits(tree(tmp_path, unified + V1, "5:memory:/job\n0::/user\n", **files)) == 2 * GB


@pytest.mark.parametrize("text", ["", "max\n", "what?", "-1"])
def test_files_that_say_nothing_are_no_limit(tmp_path, text):
    assert left_by_limits(tree(tmp_path, V2, "0::/a\n", **group("a", text, text))) is None


@pytest.mark.parametrize(("name", "line"), [("AS", "VmSize"), ("DATA", "VmData")])
def test_resource_limits_count_from_what_the_process_has(tmp_path, unlimited, name, line):
    unlimited[getattr(resource, f"RLIMIT_{name}")] = 4 * GB
    tree(tmp_path, "", "")
    (tmp_path / "proc/self/status").write_text(f"Name:\tx\n{line}:\t 1000000 kB\nThreads:\t3\n")
    assert left_by_limits(tmp_path) == 4 * GB - 1024 * 10**6


def test_free_memory_is_no_more_than_the_limits_leave(monkeypatch):
    monkeypatch.setattr(devices, "left_by_limits", lambda: 12345)
    assert devices.free_bytes(torch.device("cpu")) == 12345


def test_a_real_limit_of_the_address_space_is_seen():
    code = (
        "import resource, torch; from ddfast.runtime.devices import free_bytes;"
        "before = free_bytes(torch.device('cpu'));"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 10**8,) * 2); print(free_bytes(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and 0 < int(done.stdout) <= 10**8, done.stderr
