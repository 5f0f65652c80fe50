"""`metrics.csv` and `progress.png`: whether it learns, at a glance, after each epoch."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Generic

import pandas as pd
from matplotlib.figure import Figure

from bonemet_auto.files import atomic_write
from bonemet_auto.training.lanes import Network
from bonemet_auto.training.schedule import LOSS_WEIGHTS, is_dense_only

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_NAME = "metrics.csv"

HELD_OUT = {"held_out_dice": "Dice", "held_out_found": "lesions found"}
WHOLE_STEP = 1.7
"""Time of a step with all losses, to one of the dense branch alone, before any was seen."""


class TrainingLog(Generic[Network]):
    """The rows of one run, kept on disk.

    Args:
        folder: the fold's folder.
        first_epoch: rows from here on are dropped: a resumed run writes them again.
        glance: measures the averaged network after every epoch.
        tensorboard: also write events for TensorBoard into `folder/tensorboard`.
    """

    def __init__(
        self,
        folder: Path,
        first_epoch: int,
        glance: Callable[[Network], dict[str, float]] | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.folder = folder
        self.glance = glance
        self.rows: list[dict[str, float]] = []
        if first_epoch and (folder / METRICS_NAME).is_file():
            table = pd.read_csv(folder / METRICS_NAME)
            self.rows = table[table["epoch"] < first_epoch].to_dict("records")
        self._events = _event_writer(folder, self.rows) if tensorboard else None

    def add(self, row: dict[str, float], average: Network) -> None:
        """Append one epoch, and what a glance at the averaged network tells; write both files."""
        row = row | (self.glance(average) if self.glance else {})
        self.rows.append(row)
        with atomic_write(self.folder / METRICS_NAME) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False, float_format="%.6g")
        with atomic_write(self.folder / "progress.png") as temporary:
            _draw(pd.DataFrame(self.rows), temporary)
        if self._events is not None:
            for name, value in row.items():
                self._events.add_scalar(name, value, int(row["step"]))
            self._events.flush()


def _event_writer(folder: Path, rows: Sequence[Mapping[str, float]]) -> "SummaryWriter":
    """Goes on after the rows that are kept; TensorBoard hides later events of an earlier run."""
    from torch.utils.tensorboard import SummaryWriter

    last = int(rows[-1]["step"]) if rows else 0
    return SummaryWriter(folder / "tensorboard", purge_step=last + 1)


def epoch_line(row: Mapping[str, float], epochs: int, total_steps: int) -> str:
    """What an epoch came to, and how long the rest will take, for logs without a progress bar."""
    held_out = (f"{name} {row[key]:.2f}" for key, name in HELD_OUT.items() if key in row)
    left = timedelta(seconds=round(seconds_left(row, total_steps)))
    parts = [
        f"epoch {row['epoch'] + 1:.0f} of {epochs}",
        f"step {row['step']:.0f} of {total_steps}",
        f"{row['step_s']:.3g} s each, {loader_share(row):.0%} of it waiting for data",
    ]
    if shown := ", ".join(held_out):
        parts.append(f"held-out windows: {shown}")
    return "; ".join([*parts, f"{left} left"])


def loader_share(row: Mapping[str, float]) -> float:
    """Share of an epoch's time in which the network waited for windows."""
    return row["loader_wait_s"] / row["step_s"] if row["step_s"] else 0.0


def seconds_left(row: Mapping[str, float], total_steps: int) -> float:
    """Time of the steps after an epoch, from the times of its own."""
    left = range(int(row["step"]), total_steps)
    dense = sum(is_dense_only(step, total_steps) for step in left)
    early = is_dense_only(int(row["step"]) - 1, total_steps)
    return row["step_s"] * (dense + (len(left) - dense) * (WHOLE_STEP if early else 1.0))


def _draw(table: pd.DataFrame, path: Path) -> None:
    figure = Figure(figsize=(9, 13), layout="constrained")
    losses, held_out, fusion, rate, time = figure.subplots(
        5, 1, sharex=True, height_ratios=(3, 1.2, 1.5, 1, 1)
    )
    for name in (name for name in (*LOSS_WEIGHTS, "reconstruction") if name in table):
        losses.plot(table["epoch"], table[name], marker=".", label=name)
    losses.set(ylabel="training loss (unweighted)", yscale="log")
    losses.legend(ncols=4, fontsize="small")
    for name in (name for name in HELD_OUT if name in table):
        held_out.plot(table["epoch"], table[name], marker=".", label=HELD_OUT[name])
    held_out.set(ylabel="held-out windows", ylim=(0, 1))
    if held_out.lines:
        held_out.legend(fontsize="small")
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
