"""All that is to be known of a GPU, in order of worth, within given minutes.

python -m benchmarks.gpu --minutes 25 --output DIR [--only PART,PART] [--data FILE]
python -m benchmarks.gpu --rehearse --output DIR       on a CPU with tiny sizes: whether the script works
python -m benchmarks.gpu --pack FILE                   where CIFAR-10 is: a part of it for --data

Needs Python, torch, an nvcc and a GPU. Every part is a process with its own time limit, at which it is killed; what it
measured until then is kept in DIR/PART.jsonl, its output in DIR/PART.log. What a part leaves of its time, the next ones
get. In the end there are DIR/table.md, results.json and pictures. Called again with --only and the same DIR, the
tables have the earlier parts too. The exit status is 1 where a check or a part failed, 2 where there is no GPU.
"""

import argparse
import datetime
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.pictures import draw
from benchmarks.gpu.report import collected, write
from benchmarks.gpu.runner import INTERRUPTED, PARTS, limits, run_part

REHEARSAL = 60.0  # minutes: limits that are met on a busy machine, too; it takes one or two


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="for all parts (25; a rehearsal: 60)")
    parser.add_argument("--output", type=Path, help="the folder of the results")
    parser.add_argument(
        "--only", metavar="PART", help=f"of {', '.join(part.name for part in PARTS)}; several with commas"
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="a part of CIFAR-10 that --pack wrote")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write a part of CIFAR-10, of at most 60 MB, and end")
    parser.add_argument("--per-class", type=int, help="of --pack: training images of a class (as many as fit)")
    parser.add_argument("--test-per-class", type=int, default=1000, help="of --pack: test images of a class (1000)")
    given = parser.parse_args()
    names = [part.name for part in PARTS]
    given.only = given.only.split(",") if given.only else names
    unknown = [name for name in given.only if name not in names]
    if unknown:
        parser.error(f"--only: unknown part {unknown[0]!r}; expected some of {', '.join(names)}")
    if given.pack is None and given.output is None:
        parser.error("--output: expected a folder")
    if given.minutes is not None and not given.minutes > 0:
        parser.error("--minutes: expected more than 0")
    if given.data is not None and not given.data.is_file():
        parser.error(f"--data: there is no file {given.data}")
    return given


def there_is_a_gpu() -> bool:
    """By a process of its own, for this one never uses torch."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code]).returncode == 0


def run_parts(given: argparse.Namespace, scratch: Path) -> dict[str, dict]:
    """How every part ended. Ctrl-C and SIGTERM end the part and begin no other."""
    seconds = 60 * (given.minutes or (REHEARSAL if given.rehearse else 25))
    end, ended = time.monotonic() + seconds, {}
    left = [part for part in PARTS if part.name in given.only]
    more = ["--rehearse"] if given.rehearse else []
    more += ["--data", str(given.data.resolve())] if given.data else []
    while left:
        part = left[0]
        limit, left = limits(left, max(1.0, end - time.monotonic()))
        print(f"{part.name}: {part.words}, at most {limit:.0f} s", flush=True)
        try:
            ended[part.name] = run_part(part.name, limit, given.output, scratch, more, given.rehearse)
        except KeyboardInterrupt:
            ended[part.name] = {"status": INTERRUPTED, "seconds": None, "limit": limit}
            break
        print(f"{part.name}: {ended[part.name]['status']}, {ended[part.name]['seconds']:.0f} s", flush=True)
    return ended


def main() -> int:
    """Run the parts and report; the exit status."""
    given = options()
    if given.pack is not None:
        from benchmarks.gpu.pack import pack

        print(pack(given.pack, given.per_class, given.test_per_class))
        return 0
    if not given.rehearse and not there_is_a_gpu():
        print("torch finds no GPU; --rehearse runs tiny sizes on a CPU", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given.output = given.output.resolve()
    given.output.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="ddfast-"))
    words = {"command": f"python -m benchmarks.gpu {shlex.join(sys.argv[1:])}", "rehearsal": given.rehearse}
    words["date"] = str(datetime.date.today())
    try:
        ended = run_parts(given, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    short, failed = write(given.output, ended, words)
    try:
        draw(given.output, collected(given.output, ended))
    except Exception as error:  # no picture is worth the table
        print(f"no pictures: {type(error).__name__}: {error}")
    print(f"\n{short}", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
