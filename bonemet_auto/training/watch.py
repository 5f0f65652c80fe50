"""Is this run worth going on with? Looked at after every epoch, so that a person can stop early."""

from collections.abc import Mapping, Sequence

from bonemet_auto.training.log import loader_share
from bonemet_auto.training.schedule import DENSE_LOSSES

Row = Mapping[str, float]

RISEN = 1.5
"""Times the lowest dense loss so far; epochs of a few steps differ by a fifth."""

STARVED_SHARE = 0.1

BLIND_DICE_LOSS = 0.95
BLIND_SHARE, BLIND_STEPS = 0.25, 200
"""When the Dice loss should have left that of a network that sees nothing, which is about one; in
the first 200 steps it hardly moves anyway."""


def doubts(rows: Sequence[Row], total_steps: int) -> list[str]:
    """What is wrong with a run, said once: in the epoch in which it shows, with the likely cause.

    Args:
        rows: all epochs so far, oldest first, as in `metrics.csv`.
        total_steps: of the whole run.
    """
    found = []
    if _diverges(rows) and not _diverges(rows[:-1]):
        found.append(
            f"the loss of the dense branch has risen to {_dense(rows[-1]):.2f} from "
            f"{min(map(_dense, rows)):.2f}: training diverges. Stop it, lower learning_rate in "
            "plan.json, and start over with --overwrite."
        )
    if _is_blind(rows, total_steps) and not _is_blind(rows[:-1], total_steps):
        found.append(
            f"after {rows[-1]['step']:.0f} of {total_steps} steps the dense branch finds next to "
            f"nothing in its own training windows (Dice loss {rows[-1]['dense_dice']:.2f}). Likely "
            "causes: label maps that do not lie on the lesions (open a few scans with their "
            "labels), lesions of a few voxels at the planned spacing (plan.md says how many), or a "
            "run that is too short."
        )
    if _starves(rows) and not any(_starves(rows[:n]) for n in range(1, len(rows))):
        found.append(
            f"the network waits for its windows for {loader_share(rows[-1]):.0%} of the time: more "
            "--workers, or data on a faster disk, would make training faster"
        )
    return found


def _starves(rows: Sequence[Row]) -> bool:
    """Whether the last two epochs waited: the first one starts the loader."""
    return len(rows) > 2 and all(loader_share(row) > STARVED_SHARE for row in rows[-2:])


def _dense(row: Row) -> float:
    return sum(row[name] for name in DENSE_LOSSES if name in row)


def _diverges(rows: Sequence[Row]) -> bool:
    """Whether the last two epochs are far above the best one: a single one may be bad luck."""
    losses = [_dense(row) for row in rows]
    return len(losses) > 2 and min(losses[-2:]) > RISEN * min(losses)


def _is_blind(rows: Sequence[Row], total_steps: int) -> bool:
    """Whether windows with lesions still give the Dice loss of an empty answer."""
    if not rows or rows[-1]["step"] < max(BLIND_STEPS, BLIND_SHARE * total_steps):
        return False
    return rows[-1].get("dense_dice", 0.0) > BLIND_DICE_LOSS
