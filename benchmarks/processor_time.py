"""`ddfast` with iterations timed by what its process had of the processor, whatever else the machine does.

python -m benchmarks.processor_time distill …
"""

import time
from types import SimpleNamespace

from ddfast.cli import main
from ddfast.run import loop


def time_iterations_by_processor() -> None:
    """An iteration's seconds are of this process alone; with one thread they are those of one free core."""
    loop.time = SimpleNamespace(perf_counter=time.process_time)


if __name__ == "__main__":
    time_iterations_by_processor()
    main()
