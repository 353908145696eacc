"""How much memory this process may still take: cgroups (version 1 and 2, nested, in containers) and resource limits."""

import resource
from collections.abc import Iterator
from pathlib import Path

NO_LIMIT = 2**60  # cgroup v1 writes a number near 2**63 for none
ROOT = Path("/")
# of each version: files of limits, of what is used, and in memory.stat of what the kernel gives back when asked
VERSION_1 = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = (("memory.max", "memory.high"), "memory.current", "inactive_file")
LIMITS = {
    "AS": "VmSize",
    "DATA": "VmData",
}  # resource limits, and the line of /proc/self/status that counts against each


def left_by_limits(root: Path = ROOT) -> int | None:
    """Bytes that the tightest limit leaves; None where there is none. `root`: where /proc and /sys are looked for."""
    left = [*_left_by_cgroups(root), *_left_by_resource_limits(root)]
    return min(left) if left else None


def _left_by_resource_limits(root: Path) -> Iterator[int]:
    used = {
        line.split(":")[0]: line.split()[1] for line in _read(root / "proc/self/status").splitlines() if " kB" in line
    }
    for name, line in LIMITS.items():
        limit, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        if limit != resource.RLIM_INFINITY and line in used:
            yield max(0, limit - 1024 * int(used[line]))


def _left_by_cgroups(root: Path) -> Iterator[int]:
    """Of this process's group and of each above it, whose limits hold too."""
    for folder, top, version in _groups(root):
        limits, used, reclaimable = version
        while True:
            limit = min((_number(folder / name) for name in limits), default=NO_LIMIT)
            if limit < NO_LIMIT and (folder / used).is_file():
                yield max(0, limit - max(0, _number(folder / used) - _statistic(folder, reclaimable)))
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent


def _groups(root: Path) -> Iterator[tuple[Path, Path, tuple]]:
    """The folders of the groups that limit this process's memory, the mounts that they are in, and their versions."""
    paths = {}  # of this process, by controllers
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        paths[controllers] = path
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, *_, options) = before.split(), after.split() or [""]
        is_memory = kind == "cgroup" and "memory" in options.split(",")
        if kind != "cgroup2" and not is_memory:
            continue
        wanted = (path for names, path in paths.items() if ("memory" in names.split(",") if is_memory else not names))
        path, mounted, at = next(wanted, None), fields[3], fields[4]
        if path is None:
            continue
        top = root / at.lstrip("/")
        # a container sees its own group as the mount's root, whatever the path says
        inside = path.removeprefix(mounted) if path.startswith(mounted.rstrip("/") + "/") or path == mounted else path
        folder = top / inside.lstrip("/")
        yield (folder if folder.is_dir() and ".." not in inside else top), top, VERSION_1 if is_memory else VERSION_2


def _statistic(folder: Path, name: str) -> int:
    lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
    return next((int(words[1]) for words in lines if len(words) == 2 and words[0] == name and words[1].isdigit()), 0)


def _number(path: Path) -> int:
    """What a file says; no limit for "max", and for one that cannot be read."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else NO_LIMIT


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
