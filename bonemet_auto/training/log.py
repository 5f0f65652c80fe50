"""`metrics.csv` and `progress.png`: whether it learns, at a glance, after each epoch."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bonemet_auto.files import atomic_write
from bonemet_auto.training.schedule import LOSS_WEIGHTS

METRICS_NAME = "metrics.csv"


class TrainingLog:
    """The rows of one run, kept on disk.

    Args:
        folder: the fold's folder.
        first_epoch: rows from here on are dropped: a resumed run writes them again.
    """

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []
        if first_epoch and (folder / METRICS_NAME).is_file():
            table = pd.read_csv(folder / METRICS_NAME)
            self.rows = table[table["epoch"] < first_epoch].to_dict("records")

    def add(self, row: dict[str, float]) -> None:
        """Append one epoch and write both files."""
        self.rows.append(row)
        with atomic_write(self.folder / METRICS_NAME) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False, float_format="%.6g")
        with atomic_write(self.folder / "progress.png") as temporary:
            _draw(pd.DataFrame(self.rows), temporary)


def _draw(table: pd.DataFrame, path: Path) -> None:
    figure = Figure(figsize=(9, 12), layout="constrained")
    losses, fusion, rate, time = figure.subplots(4, 1, sharex=True, height_ratios=(3, 1.5, 1, 1))
    for name in (name for name in (*LOSS_WEIGHTS, "reconstruction") if name in table):
        losses.plot(table["epoch"], table[name], marker=".", label=name)
    losses.set(ylabel="training loss (unweighted)", yscale="log")
    losses.legend(ncols=4, fontsize="small")
    for name in (name for name in table if name.startswith(("down", "up"))):
        fusion.plot(table["epoch"], table[name], marker=".", label=name)
    fusion.set(ylabel="weights of the fusion neck", ylim=(0, None))
    if fusion.lines:
        fusion.legend(ncols=4, fontsize="x-small")
    rate.plot(table["epoch"], table["learning_rate"], marker=".")
    rate.set(ylabel="learning rate")
    time.plot(table["epoch"], table["step_s"], marker=".", label="step")
    time.plot(table["epoch"], table["loader_wait_s"], marker=".", label="of it waiting for data")
    time.set(ylabel="seconds", xlabel="epoch", ylim=(0, None))
    time.legend(fontsize="small")
    figure.savefig(path, dpi=80)
