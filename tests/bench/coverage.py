"""How often 95 % intervals hold the truth: simulated cohorts against the figures' own code.

    python -m tests.bench.coverage [--cohorts 1000] [--replicates 1000]

The truth of each figure is its value over a population of 200 000 patients. Beside the interval
that `bonemet_evaluate` prints stands that of the plain percentiles of the same draws, which it
prints of differences.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from bonemet_auto.evaluation.bootstrap import (
    Interval,
    Measure,
    bca_levels,
    mean_statistic,
    patient_weights,
    percentile_interval,
    replicate,
)
from bonemet_auto.evaluation.classification import share_measure
from bonemet_auto.evaluation.comparison import delong_difference
from bonemet_auto.evaluation.detection import (
    FROC_RATES,
    Candidates,
    average_precision,
    froc_sensitivity,
)
from bonemet_auto.evaluation.source import Estimates, lesion_measures, patient_measures

POPULATION = 200_000
Cohort = Callable[[int, np.random.Generator], dict[str, Measure]]


def binormal_patients(auc: float, prevalence: float = 0.5, overconfidence: float = 1.3) -> Cohort:
    """Scores that are normal in each class; probabilities with too large logits."""
    distance = np.sqrt(2) * norm.ppf(auc)

    def cohort(n: int, rng: np.random.Generator) -> dict[str, Measure]:
        positive = rng.random(n) < prevalence
        score = distance * positive + rng.normal(size=n)
        logits = distance * (score - distance / 2) + np.log(prevalence / (1 - prevalence))
        probability = expit(overconfidence * logits)
        return patient_measures(of(probability, positive, np.arange(n), n, "patients"))

    return cohort


def of(
    probability: np.ndarray, positive: np.ndarray, patients: np.ndarray, n: int, unit: str
) -> Estimates:
    """Estimates that are called at one half."""
    return Estimates(probability, positive, probability >= 0.5, patients, n, unit, unit)


def clustered_lesions(n: int, rng: np.random.Generator) -> dict[str, Measure]:
    """One to some ten lesions in a patient, of mostly one source, whose scores go together."""
    patients = np.repeat(np.arange(n), 1 + rng.negative_binomial(1, 1 / 3, n))
    positive_patient = rng.random(n) < 0.5
    positive = positive_patient[patients] ^ (rng.random(patients.size) < 0.05)
    shared = rng.normal(size=n)[patients]
    score = 1.6 * positive - 0.8 + 0.8 * shared + 0.6 * rng.normal(size=patients.size)
    return lesion_measures(of(expit(1.5 * score), positive, patients, n, "lesions"))


def detections(n: int, rng: np.random.Generator) -> dict[str, Measure]:
    """Scans with lesions that are easier in some patients, and false positives that bunch."""
    lesions = rng.negative_binomial(1, 1 / 3, n) + (rng.random(n) < 0.85)
    owners = np.repeat(np.arange(n), lesions)
    ease = rng.normal(0.6, 1, n)[owners] + rng.normal(size=owners.size)
    false_owners = np.repeat(np.arange(n), rng.negative_binomial(1, 1 / 4, n))
    seen = ease > -1
    scores = np.concatenate([ease[seen], rng.normal(-0.7, 1, false_owners.size)])
    hits = np.arange(scores.size) < seen.sum()
    everyone = np.concatenate([owners[seen], false_owners])
    scored = Candidates(expit(scores), hits, everyone, lesions.astype(float), np.ones(n))
    kept = scores >= 0
    false = np.bincount(everyone[kept & ~hits], minlength=n).astype(float)
    dice = np.where(ease >= 0, np.clip(0.75 + 0.15 * rng.normal(size=owners.size), 0.1, 1), 0.0)
    patient_dice = np.where(
        lesions > 0,
        np.bincount(owners, dice, n) / np.maximum(lesions, 1),
        (false == 0).astype(float),
    )
    return {
        "sensitivity": share_measure(ease >= 0, owners, n, "lesions", "none"),
        "fp_per_scan": Measure(mean_statistic(false, np.arange(n), n), n, "scans"),
        "sensitivity_at_1_fp": Measure(froc_sensitivity(scored, (1.0,)), n, "lesions"),
        "cpm": Measure(froc_sensitivity(scored, FROC_RATES), n, "lesions"),
        "ap": Measure(average_precision(scored), n, "lesions"),
        "dsc": Measure(mean_statistic(patient_dice, np.arange(n), n), n, "patients"),
        "dsc_all": Measure(mean_statistic(dice, owners, n), n, "lesions"),
    }


def two_models(n: int, rng: np.random.Generator) -> dict[str, Measure]:
    """Two models of AUC .84 and .80 whose errors go together."""
    positive, rows = rng.random(n) < 0.5, np.arange(n)
    shared = rng.normal(size=n)
    estimates = []
    for auc in (0.84, 0.80):
        noise = np.sqrt(0.6) * shared + np.sqrt(0.4) * rng.normal(size=n)
        score = np.sqrt(2) * norm.ppf(auc) * (positive - 0.5) + noise
        estimates.append(of(expit(1.5 * score), positive, rows, n, "patients"))
    measured = [patient_measures(each) for each in estimates]
    tested = delong_difference(*estimates)
    difference = difference_of(measured[0]["auc"], measured[1]["auc"])
    paired = {
        f"{name}, difference": difference_of(measured[0][name], measured[1][name])
        for name in ("auc", "accuracy", "sensitivity", "brier", "ece")
    }
    delong = replace(difference, interval=Interval(tested.low, tested.high, "DeLong"))
    return paired | {"auc, difference, DeLong": delong}


def difference_of(first: Measure, second: Measure) -> Measure:
    """First less second, at the same weights."""
    return Measure(lambda weights: first.statistic(weights) - second.statistic(weights), 0, "")


SCENARIOS: tuple[tuple[str, int, Cohort], ...] = (
    ("106 patients, AUC .84", 106, binormal_patients(0.84)),
    ("265 patients, AUC .84", 265, binormal_patients(0.84)),
    ("30 patients, AUC .84", 30, binormal_patients(0.84)),
    ("106 patients, AUC .97", 106, binormal_patients(0.97)),
    ("106 patients, two models", 106, two_models),
    ("sources of lesions of 106 patients", 106, clustered_lesions),
    ("lesions found in 106 patients", 106, detections),
    ("lesions found in 30 patients", 30, detections),
)


@dataclass
class Tally:
    """What became of one figure's intervals."""

    truth: float
    held: int = 0
    held_plain: int = 0
    none: int = 0
    resampled: bool = False


def note(name: str, tally: Tally, measure: Measure, weights: np.ndarray) -> None:
    """Add one cohort's interval; for calibration errors the one that is not printed."""
    n, interval = weights.shape[1], measure.interval
    plain = None
    if interval is None or name.endswith("ece"):
        replicates = replicate(measure.statistic, weights)
        left_out = replicate(measure.statistic, 1 - np.eye(n))
        levels = bca_levels(replicates, left_out, measure.value(n))
        interval = percentile_interval(replicates, n, "", levels)
        plain = percentile_interval(replicates, n, "")
    if not np.isfinite(measure.value(n)) or interval.low is None or interval.high is None:
        tally.none += 1
        return
    tally.held += interval.low <= tally.truth <= interval.high
    if plain is not None and plain.low is not None and plain.high is not None:
        tally.resampled = True
        tally.held_plain += plain.low <= tally.truth <= plain.high


def count(cohort: Cohort, n: int, n_cohorts: int, n_replicates: int) -> dict[str, Tally]:
    """Intervals of many cohorts of `n` patients against the population's figures."""
    population = cohort(POPULATION, np.random.default_rng(1))
    tallies = {name: Tally(measure.value(POPULATION)) for name, measure in population.items()}
    for number in range(n_cohorts):
        rng = np.random.default_rng([number, n])
        measures, weights = cohort(n, rng), patient_weights(n, n_replicates, rng)
        for name, measure in measures.items():
            note(name, tallies[name], measure, weights)
    return tallies


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=[""], help="scenarios that hold these words")
    options = parser.parse_args()
    print("| | truth | interval holds it, % | plain percentiles, % | without interval |")
    print("| --- | --- | --- | --- | --- |")
    for title, n, cohort in SCENARIOS:
        if not any(words in title for words in options.only):
            continue
        began = time.perf_counter()
        tallies = count(cohort, n, options.cohorts, options.replicates)
        print(f"| **{title}** | | | | |", flush=True)
        for name, tally in tallies.items():
            intervals = max(options.cohorts - tally.none, 1)
            held = f"{100 * tally.held / intervals:.1f}"
            plain = f"{100 * tally.held_plain / intervals:.1f}" if tally.resampled else ""
            print(f"| {name} | {tally.truth:.3f} | {held} | {plain} | {tally.none or ''} |")
        print(f"{title}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
