"""Progress of a run: a bar on a terminal, log lines in notebooks and files."""

import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from ddfast.runtime.forecast import words_of_time

log = logging.getLogger("ddfast")

SECONDS_BETWEEN_LINES = 10.0  # without a terminal


def verbose() -> None:
    """Show log messages and the time left on stderr, as the command line does; for scripts and notebooks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def progress(distillation: Any) -> Iterator[dict[str, Any]]:
    """Yield the records of a distillation and show a bar or occasional log lines; for `distill(progress=…)`."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    first, last = distillation.iteration, distillation.iterations
    bar = tqdm(distillation, initial=first, total=last, unit="it", disable=None, file=sys.stderr, dynamic_ncols=True)
    said = time.monotonic()
    with logging_redirect_tqdm([log]):
        for record in bar:
            state = {"loss": f"{record['loss']:.3f}"} | ({"lr": f"{record['lr']:.4g}"} if "lr" in record else {})
            state |= {"s/it": f"{record['seconds']:.2f}", "memory": f"{record['peak_bytes'] / 2**20:.0f}M"}
            state |= {name: record[name] for name in ("skipped", "gated", "floored") if record.get(name)}
            bar.set_postfix(state)
            now, done = time.monotonic(), record["iteration"]
            if bar.disable and (now - said > SECONDS_BETWEEN_LINES or done in (first + 1, last)):
                words = ", ".join(f"{name} {value}" for name, value in state.items())
                if distillation.forecast.is_known:
                    words += f", about {words_of_time(distillation.forecast.left())} left in all"
                log.info("iteration %d of %d: %s", done, last, words)
                said = now
            yield record
