"""How often the drift tests cry wolf, and what they miss, on simulated series, beside KS and PSI on the same.

`python -m benchmarks.drift_false_alarms` prints the table; a unit test holds `verdicts` equal to the SQL of
`dbt_project/macros/drift_verdicts.sql`. A suite is 50 features, each tested for its mean and its spread.

Known limit, not in the table: AR(0.98) under white noise of a quarter to all of its variance, in the shortest window
(14 + 42), looks independent; of such series up to 0.6 % per test are called drifted, where 0.01 % are to be.
That is an alarm in 11 to 28 of 100 stable suites of nothing but such features, in 800 of each; AR(0.9) under noise, up
to 11. To ask for 12 independent days instead of 32 would test more (AR(0.3): 93 % of the series instead of 10) and keep
suites without noise within 1 %, but not these: 30 to 40 of 100 under noise of a tenth to a quarter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FEATURES = 50
ERROR_RATE, MINIMUM_N_EFFECTIVE, SHIFT_TO_SEE = 0.01, 32, 0.5
"""As in `vars: drift` of dbt_project.yml."""
REFERENCE = 3
"""How many times as long as the current window the reference is, there and here."""


def verdicts(
    statistics: list[tuple[Floats, Floats]], tests: int, scales: list[Floats] | None = None
) -> list[dict[str, Any]]:
    """What the SQL says of each statistic (mean, spread, ...) of some features.

    Args:
        statistics: reference and current window of each, (features, periods); no gaps, no nulls.
        tests: in the suite, which share its error rate.
        scales: the standard deviation of each; by default that of the reference.

    Returns:
        For each statistic `difference`, `significant` (what is more than that is no chance; NaN where the
        variance cannot be told), `n_effective`, `is_drifted`, `is_stable`: arrays of one value per feature.
    """
    sums = [_sums(*windows) for windows in statistics]
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = np.maximum.reduce([_autocorrelation(one) for one in sums])
        tau = np.where(rho < 1, (1 + rho) / (1 - rho), np.nan)
        return [
            _verdict(one, tau, tests, scales[k] if scales else one["reference_std"])
            for k, one in enumerate(sums)
        ]


def _sums(reference: Floats, current: Floats) -> dict[str, Any]:
    """Sums of one statistic over both windows, around each window's mean; batches of equal size."""
    squares: Any = 0.0
    products: Any = 0.0
    batched: Any = 0.0
    batches = 0
    sizes = reference.shape[1], current.shape[1]
    for window in (reference, current):
        n = window.shape[1]
        deviations = window - window.mean(axis=1, keepdims=True)
        squares = squares + (deviations**2).sum(axis=1)
        products = products + (deviations[:, 1:] * deviations[:, :-1]).sum(axis=1)
        count = min(n, 10 * n // min(sizes))
        batch = np.arange(n) * count // n
        starts = np.searchsorted(batch, np.arange(count))
        totals = np.add.reduceat(deviations, starts, axis=1)
        batched = batched + (totals**2 / np.diff(np.append(starts, n))).sum(axis=1)
        batches += count
    return {
        "sizes": sizes,
        "n": sum(sizes),
        "squares": squares,
        "products": products,
        "batched": batched,
        "batches": batches,
        "difference": current.mean(axis=1) - reference.mean(axis=1),
        "reference_std": reference.std(axis=1),
    }


def _autocorrelation(sums: dict[str, Any]) -> Floats:
    """Of lag one: its small-sample bias taken out, and a standard error added."""
    n = sums["n"]
    biased = np.nan_to_num(sums["products"] / sums["squares"])
    rho = np.maximum(0, biased + 2 * (1 + 3 * biased) / n)
    return np.asarray(rho + np.sqrt(np.maximum(0, 1 - rho**2) / n))


def _verdict(sums: dict[str, Any], tau: Floats, tests: int, scale: Floats) -> dict[str, Any]:
    n, squares, batches = sums["n"], sums["squares"], sums["batches"]
    variance = np.where(
        n > 2 * tau + 1,
        np.maximum(squares * tau / (n - 2 * tau), sums["batched"] / (batches - 2)),
        np.nan,
    )
    error = np.sqrt(variance * sum(1 / size for size in sums["sizes"]))
    n_effective = np.where(variance == 0, n, squares / (n - 2) * n / variance)
    significant = (
        student_t(ERROR_RATE / 2 / tests, np.minimum(n_effective / 2, batches - 2)) * error
    )
    is_tested = n_effective >= MINIMUM_N_EFFECTIVE
    is_drifted = is_tested & (np.abs(sums["difference"]) > significant)
    return {
        "difference": sums["difference"],
        "significant": significant,
        "n_effective": n_effective,
        "is_drifted": is_drifted,
        "is_stable": is_tested
        & ~is_drifted
        & (significant + 1.2816 * error <= SHIFT_TO_SEE * scale),
    }


def student_t(tail: float, dof: Floats) -> Floats:
    """Student's quantile with `tail` above it: Abramowitz & Stegun 26.2.23 and 26.7.5, as in the SQL."""
    t = np.sqrt(-2 * np.log(tail))
    z = t - (2.515517 + 0.802853 * t + 0.010328 * t**2) / (
        1 + 1.432788 * t + 0.189269 * t**2 + 0.001308 * t**3
    )
    return np.asarray(
        z
        + (z**3 + z) / (4 * dof)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * dof**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * dof**3)
    )


def autoregressive(
    rng: np.random.Generator, features: int, periods: int, phi: float, skewed: bool
) -> Floats:
    """AR(1) series of variance 1, started in their stationary state; skewed ones have exponential shocks."""
    from scipy.signal import lfilter

    shape = (features, periods)
    shocks = rng.exponential(size=shape) - 1 if skewed else rng.standard_normal(shape)
    shocks[:, 1:] *= np.sqrt(1 - phi**2)
    return np.asarray(lfilter([1], [1, -phi], shocks, axis=1))


def suite(rng: np.random.Generator, current: int, phi: float, skewed: bool) -> dict[str, float]:
    """One stable suite, and the same with every feature's mean shifted by half a standard deviation."""
    split = REFERENCE * current
    stable = autoregressive(rng, FEATURES, split + current, phi, skewed)
    shifted = stable.copy()
    shifted[:, split:] += SHIFT_TO_SEE

    def run(series: Floats) -> list[dict[str, Any]]:
        spread = np.abs(series - series[:, :split].mean(axis=1, keepdims=True))
        both = [(one[:, :split], one[:, split:]) for one in (series, spread)]
        return verdicts(both, tests=2 * FEATURES)

    mean, spread = run(stable)
    return {
        "false alarm": float(mean["is_drifted"].any() or spread["is_drifted"].any()),
        "not enough data": float(1 - (mean["is_drifted"] | mean["is_stable"]).mean()),
        "power": float(run(shifted)[0]["is_drifted"].mean()),
        **_peers(stable[:, :split], stable[:, split:]),
    }


def _peers(reference: Floats, current: Floats) -> dict[str, float]:
    """Share of features that KS (Bonferroni over the suite) and PSI > 0.1 alarm on, and suites with any."""
    from scipy.stats import ks_2samp

    some = slice(0, 5) if reference.shape[1] > 5_000 else slice(None)
    ks, psi = [], []
    for before, after in zip(reference[some], current[some], strict=True):
        ks.append(ks_2samp(before, after, method="asymp").pvalue < ERROR_RATE / FEATURES)
        edges = np.quantile(before, np.linspace(0, 1, 11)[1:-1])
        p, q = (
            np.bincount(np.searchsorted(edges, values), minlength=10) / len(values) + 1e-6
            for values in (before, after)
        )
        psi.append(((q - p) * np.log(q / p)).sum() > 0.1)
    return {"KS alarms": float(np.mean(ks)), "PSI > 0.1": float(np.mean(psi))}


def main() -> None:
    """Print a line per kind of series and length of the current window; five minutes on two cores."""
    from rich.console import Console
    from rich.table import Table
    from scipy.stats import beta

    rng = np.random.default_rng(20261124)
    table = Table("series", "periods", "suites", "suites with a false alarm", "not enough data",
                  "power at 0.5 sd", "KS alarms", "PSI > 0.1")  # fmt: skip
    for skewed in (False, True):
        for phi, lengths in ((0.0, (14, 60, 250)), (0.5, (14, 750)), (0.9, (100, 4_750)),
                             (0.98, (500, 2_000, 5_000, 25_000))):  # fmt: skip
            for current in lengths:
                suites = int(min(1_000, 1_200_000 // current))
                found = [suite(rng, current, phi, skewed) for _ in range(suites)]
                mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
                alarms = round(mean["false alarm"] * suites)
                high = float(beta.ppf(0.95, alarms + 1, suites - alarms))
                table.add_row(
                    f"{'skewed ' if skewed else ''}{f'AR({phi:g})' if phi else 'independent'}",
                    f"{current:,} + {REFERENCE * current:,}", f"{suites:,}",
                    f"{mean['false alarm']:.2%} (below {high:.2%})",
                    *(f"{mean[name]:.1%}" for name in list(mean)[1:]),
                )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
