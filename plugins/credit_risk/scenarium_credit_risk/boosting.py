"""The training itself. XGBoost is imported here, when a training begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xgboost

from scenarium.core import Run, TrainConfig

if TYPE_CHECKING:
    from scenarium_credit_risk import Trees

PATIENCE = 30


class Follow(xgboost.callback.TrainingCallback):
    """Tells progress and figures of each tree."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """After each tree; False: go on."""
        losses = {f"{split}_loss": float(figures["logloss"][-1]) for split, figures in evals_log.items()}
        self.run.progress.advance(1, **losses)
        self.run.log(epoch + 1, **losses)
        return False


def boost(model: Trees, settings: TrainConfig, parts: dict[str, xgboost.DMatrix], run: Run) -> xgboost.Booster:
    """Trees for ``parts["train"]``, as many as lower the log loss of ``parts["val"]``, or all where there is none."""
    parameters = {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "max_depth": model.depth,
        "eta": model.rate,
        "subsample": 0.8,
        "min_child_weight": 5,
        "seed": settings.seed,
        "nthread": settings.threads or 0,
        "verbosity": 0,
    }
    run.progress.start("trees", model.trees)
    booster = xgboost.train(
        parameters,
        parts["train"],
        model.trees,
        evals=[(matrix, split) for split, matrix in parts.items()],
        early_stopping_rounds=PATIENCE if "val" in parts else None,
        verbose_eval=False,
        callbacks=[Follow(run)],
    )
    run.progress.finish()
    return booster[: booster.best_iteration + 1] if "val" in parts else booster
