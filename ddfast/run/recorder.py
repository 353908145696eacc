"""What a run writes while it goes: records, checkpoints, evaluations on the way, pictures."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ddfast.evaluation import evaluate
from ddfast.run.folder import RunFolder
from ddfast.run.job import Job
from ddfast.run.loop import Distillation
from ddfast.run.pictures import save_curves, save_images, save_thumbnail
from ddfast.run.trackers import Tracker
from ddfast.runtime.forecast import Forecast

log = logging.getLogger("ddfast")


class Recorder:
    """Keeps a distillation's run folder. Made from a folder that holds a checkpoint, it has the distillation go on.

    Errors: ValueError where the checkpoint is missing, damaged or of another run.
    """

    def __init__(self, run: RunFolder, job: Job, distillation: Distillation, tracker: Tracker | None = None) -> None:
        self._run, self._job, self._distillation = run, job, distillation
        self._tracker = Tracker() if tracker is None else tracker
        self._every, self._eval_every = job.config["checkpoint_every"], job.config["eval_every"]
        state = job.ranks.together(run.read_state)
        if state is None:
            self._begin()
        else:
            self._go_on(state)
        last = distillation.iteration
        self.history: list[dict[str, Any]] = job.ranks.in_turn(lambda: run.keep_until("metrics", last))
        evaluations = job.ranks.in_turn(lambda: run.keep_until("evaluations", last))
        self._evaluated = {record["iteration"] for record in evaluations}
        self._tracker.begin(job.config, last)
        distillation.on_record, distillation.on_plan = self._keep, self._keep_plan

    def _begin(self) -> None:
        if (self._run.path / "synthetic.safetensors").exists():
            checkpoint = self._run.path / "checkpoint.pt"
            raise ValueError(
                f"{checkpoint}: is missing, so the run cannot be resumed; start it again in another folder"
            )
        self._job.ranks.first(lambda: self._run.write_synthetic(self._distillation.synthetic, "initial"))
        self._draw(save_images, self._distillation.synthetic, "initial.png")

    def _go_on(self, state: dict[str, Any]) -> None:
        try:
            self._distillation.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            checkpoint = self._run.path / "checkpoint.pt"
            raise ValueError(
                f"{checkpoint}: does not belong to this run ({error}); start the run again in another folder"
            ) from None
        log.info("continuing after iteration %d", self._distillation.iteration)

    def evaluate_if_due(self) -> None:
        """The evaluation after the last iteration, where it is due and was not made."""
        if self._is_due() and self._distillation.iteration not in self._evaluated:
            self._evaluate()

    def after(self, record: dict[str, Any]) -> None:
        """After an iteration: a checkpoint and an evaluation where they are due."""
        if record["iteration"] % self._every == 0 or self._is_due():
            self._save()
            self._draw_images()
        if self._is_due():
            self._evaluate()

    def end(self) -> None:
        """Save what there is, between two iterations."""
        self._save()
        self._draw_images(self._distillation.iteration == self._distillation.iterations)
        self._draw(save_curves, self.history, "curves.png")

    def _is_due(self) -> bool:
        done, last = self._distillation.iteration, self._distillation.iterations
        return bool(self._eval_every) and 0 < done < last and done % self._eval_every == 0

    def _keep(self, record: dict[str, Any]) -> None:
        self.history.append(record)
        self._run.append("metrics", record)
        self._tracker.log(record, record["iteration"])

    def _keep_plan(self) -> None:
        self._save()  # what was done before it is not done again with it
        self._run.write_config(self._job.config)

    def _save(self) -> None:
        if not self._run.writes:
            return
        self._run.write_state(self._distillation.state_dict())
        self._run.write_synthetic(self._distillation.synthetic)
        averaged = self._distillation.averaged
        if averaged is not None:
            self._run.write_synthetic(averaged, "averaged")

    def _evaluate(self) -> None:
        run, job, done = self._run, self._job, self._distillation.iteration
        synthetic, averaged = self._distillation.synthetic, self._distillation.averaged
        result = evaluate(synthetic, job.data, **evaluation_options(job, run, Forecast())).summary()
        run.write_synthetic(synthetic, f"checkpoints/{done:06d}")
        if averaged is not None:
            result["averaged"] = evaluate(averaged, job.data, **evaluation_options(job, run, Forecast())).summary()
            run.write_synthetic(averaged, f"checkpoints/{done:06d}-averaged")
        run.append("evaluations", {"iteration": done, **result})
        self._tracker.log_accuracies({"distilled": result}, done)
        run.prune_checkpoints(job.config["keep_checkpoints"])
        log.info("iteration %d: %.1f%% ± %.1f", done, result["mean"], result["std"])

    def _draw_images(self, keeps: bool = True) -> None:
        """Thumbnails are of checkpoints that are due and of the end: where a run was stopped leaves none."""
        iteration, synthetic = self._distillation.iteration, self._distillation.synthetic
        self._draw(save_images, synthetic, "images.png")
        if not keeps:
            return
        self._draw(partial(save_thumbnail, iteration=iteration), synthetic, "thumbnails")
        self._tracker.log_images(synthetic, iteration)

    def _draw(self, save_picture: Callable[[Any, Path], None], what: Any, name: str) -> None:
        if not self._run.writes:
            return
        try:
            save_picture(what, self._run.path / name)
        except Exception as error:  # no picture is worth a run, or the error that ended it
            log.warning("%s: not drawn (%s: %s)", name, type(error).__name__, error)


def evaluation_options(job: Job, run: RunFolder, forecast: Forecast) -> dict[str, Any]:
    """Keyword arguments of `evaluate` for a run's sets."""
    config = job.config
    return {
        "networks": tuple(config["networks"]),
        "num_eval": config["num_eval"],
        "eval_epochs": config.get("eval_epochs"),
        "eval_lr": job.eval_rates,
        "eval_batch": config.get("eval_batch"),
        "protocol": config["protocol"],
        "sam_rho": config.get("sam_rho"),
        "seed": config["seed"],
        "device": str(job.device),
        "output": run.path / "accuracies.jsonl",
        "ranks": job.ranks,
        "forecast": forecast,
    }
