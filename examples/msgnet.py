"""MSGNet at laptop scale: scales are found in noise, correlations change sign with the scale, and a real recording."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from claims import Claim, main

from refattn.layers.msgnet import identify_scales, msgnet_forecast
from refattn.layers.msgnet_graph import graph_block_flops
from refattn.layers.msgnet_init import msgnet_init
from refattn.layers.msgnet_linear import linear_multiscale_forecast, linear_multiscale_graph
from refattn.layers.msgnet_scales import fold_segments

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PERIODS = (24, 6)
T, P = 96, 24
RED, BLUE, GOLD, GREY = "#b5577a", "#3a9188", "#c8963e", "#7f8fa6"


def noisy_waves(rng: np.random.Generator, sigma: float, *, windows: int = 8, series: int = 4) -> np.ndarray:
    """Return windows (B, T, N) of two waves with random phases, in noise."""
    t = np.arange(T)[None, :, None]
    phase = rng.uniform(0, 2 * np.pi, (2, windows, 1, series))
    waves = sum(np.sin(2 * np.pi * t / s + p) for s, p in zip(PERIODS, phase, strict=True))
    return waves + sigma * rng.standard_normal((windows, T, series))


def recovery(sigma: float, seeds: int) -> float:
    """Return how often exactly the two planted periods are found."""
    found = 0
    for seed in range(seeds):
        scales = identify_scales(noisy_waves(np.random.default_rng(seed), sigma), k=2)
        found += set(scales.periods.tolist()) == set(PERIODS)
    return found / seeds


def scale_claims(*, quick: bool) -> list[Claim]:
    """Find planted periods in more and more noise."""
    rates = {sigma: recovery(sigma, 30 if quick else 200) for sigma in (0.5, 1, 2, 4, 8)}
    holds = min(rates[sigma] for sigma in (0.5, 1, 2, 4)) >= 0.99
    return [
        Claim(
            "A scales are found",
            "The two strongest frequencies of a batch are the planted ones, in noise four times as large as the waves.",
            "periods 24, 6 and 4 found on Flight; no rate given",
            ", ".join(f"{rate:.2f} at σ = {sigma:g}" for sigma, rate in rates.items()),
            "reproduced" if holds else "not reproduced",
        )
    ]


def followers(rng: np.random.Generator, windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return windows and futures of a leader, slow + fast, and a follower, slow − fast, whose past is hardly seen."""
    t = np.arange(T + P)
    slow, fast = (np.sin(2 * np.pi * t / s + rng.uniform(0, 2 * np.pi, (windows, 1))) for s in PERIODS)
    noise = np.full((T + P, 2), 0.1)
    noise[:T, 1] = 2.0
    series = np.stack([slow + fast, slow - fast], axis=-1)
    series = series + noise * rng.standard_normal(series.shape)
    return series[:, :T], series[:, T:]


def sign_experiment(
    seed: int = 0, *, train: int = 200, test: int = 500
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Fit a graph for each scale, one for all, and none; mixing matrices, and test errors on the follower."""
    rng = np.random.default_rng(seed)
    (x, y), (x_test, y_test) = followers(rng, train), followers(rng, test)
    mixing = {
        "per scale": linear_multiscale_graph(x, y, periods=PERIODS),
        "shared": linear_multiscale_graph(x, y, periods=PERIODS, shared=True),
    }
    alone = linear_multiscale_graph(x[..., 1:], y[..., 1:], periods=PERIODS)
    target = y_test[..., 1]
    errors = {
        name: np.mean((linear_multiscale_forecast(x_test, m, periods=PERIODS, horizon=P)[..., 1] - target) ** 2)
        for name, m in mixing.items()
    }
    own = linear_multiscale_forecast(x_test[..., 1:], alone, periods=PERIODS, horizon=P)[..., 0]
    return mixing, {**{k: float(v) for k, v in errors.items()}, "own past": float(np.mean((own - target) ** 2))}


def sign_claims() -> list[Claim]:
    """Let the sign of a correlation depend on the scale."""
    mixing, errors = sign_experiment()
    weights = mixing["per scale"][:, 1, 0]
    ratio = errors["shared"] / errors["per scale"]
    holds = ratio > 5 and weights[0] > 0.9 and weights[1] < -0.9
    return [
        Claim(
            "B each scale needs its own graph",
            "Where a series follows another at one period and opposes it at another, one graph for all scales fails.",
            "Flight MSE 0.195 with a graph for each scale, 0.213 with one",
            ", ".join(f"{name} {error:.4f}" for name, error in errors.items())
            + f" (noise floor 0.0100); shared / per scale = {ratio:.1f}; "
            + ", ".join(f"{w:+.2f} at period {s}" for w, s in zip(weights, PERIODS, strict=True)),
            "reproduced" if holds else "not reproduced",
        )
    ]


def recording() -> np.ndarray:
    """Return the brain waves that ship with matplotlib: 800 times (10 s) at 4 electrodes, mean 0 and deviation 1."""
    from matplotlib.cbook import get_sample_data

    with get_sample_data("eeg.dat") as file:
        x = np.frombuffer(file.read(), dtype=float).reshape(800, 4)
    return (x - x.mean(0)) / x.std(0)


def band_correlation(x: np.ndarray, lowest: float, highest: float, pair: tuple[int, int]) -> float:
    """Return the correlation of two electrodes among frequencies in hertz."""
    hertz = np.fft.rfftfreq(len(x), 10.0 / 800)
    coefficients = np.fft.rfft(x, axis=0) * ((hertz >= lowest) & (hertz < highest))[:, None]
    return float(np.corrcoef(np.fft.irfft(coefficients, len(x), axis=0)[:, pair].T)[0, 1])


def cut(x: np.ndarray, length: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all windows of a recording, and what follows each, both less the window's mean."""
    starts = np.arange(len(x) - length - horizon + 1)
    windows = x[starts[:, None] + np.arange(length + horizon)]
    windows = windows - windows[:, :length].mean(axis=1, keepdims=True)
    return windows[:, :length], windows[:, length:]


def recording_errors(length: int = 80, horizon: int = 20) -> tuple[list[int], dict[str, float]]:
    """Forecast the last 40 % of the recording from fits to the first 60 %; the scales, and errors in variances."""
    x, y = cut(recording(), length, horizon)
    train = slice(0, len(x) * 6 // 10)
    test = slice(train.stop + length + horizon, None)  # no overlap
    scales = identify_scales(x[train], k=4)
    periods = [int(length // f) for f in scales.freqs if length % f == 0]

    def error(series: list[int], *, shared: bool) -> float:
        mixing = linear_multiscale_graph(x[train][..., series], y[train][..., series], periods=periods, shared=shared)
        forecast = linear_multiscale_forecast(x[test][..., series], mixing, periods=periods, horizon=horizon)
        return float(np.mean((forecast - y[test][..., series]) ** 2))

    everyone = list(range(4))
    own = float(np.mean([error([n], shared=False) for n in everyone]))
    mean = float(np.mean(y[test] ** 2))
    errors = {"per scale": error(everyone, shared=False), "shared": error(everyone, shared=True)}
    return periods, {**errors, "own past": own, "mean of the window": mean}


def recording_claims() -> list[Claim]:
    """Look for scales, correlations and gains in a real recording."""
    x, pair = recording(), (0, 3)
    bands = {"0.5–3 Hz": (0.5, 3.0), "7–25 Hz": (7.0, 25.0)}
    halves = (x[:400], x[400:])
    found = {name: [band_correlation(half, *band, pair) for half in halves] for name, band in bands.items()}
    gaps = [fast - slow for slow, fast in zip(*found.values(), strict=True)]
    periods, errors = recording_errors()
    return [
        Claim(
            "correlation depends on the scale, in a real recording",
            "Two electrodes that have nothing to do with each other in slow waves go together in fast ones.",
            "correlations of series differ from scale to scale (Figure 1)",
            "; ".join(f"{name}: {a:+.2f}, {b:+.2f}" for name, (a, b) in found.items()) + " in the two halves of 10 s",
            "reproduced" if min(gaps) > 0.2 else "not reproduced",
        ),
        Claim(
            "graphs for each scale forecast a real recording",
            "Linear graphs for each scale forecast ten seconds of brain waves better than one for all.",
            "better on 5 of 8 data sets, none of them this one",
            ", ".join(f"{name} {error:.2f}" for name, error in errors.items())
            + f" (mean squared errors; periods {', '.join(map(str, periods))} of 80 times)",
            "reproduced" if errors["per scale"] < min(errors["shared"], errors["own past"]) else "not reproduced",
        ),
    ]


def model_claims() -> list[Claim]:
    """Run the whole model, untrained, on the recording."""
    x, _ = cut(recording(), 96, 24)
    batch = x[::150][:4]
    weights = msgnet_init(np.random.default_rng(0), length=96, horizon=24, n_series=4, width=8, channels=4, skip=4)
    forecast = msgnet_forecast(batch, weights, n_heads=2)
    units = np.array([1.0, 10.0, 100.0, 1000.0])
    level = 3.0 * units
    lifted = np.abs(msgnet_forecast(batch + level, weights, n_heads=2) - (forecast + level)).max()
    scaled = np.abs(msgnet_forecast(batch * units, weights, n_heads=2) / units - forecast).max()
    alone = max(
        np.abs(msgnet_forecast(w[None], weights, n_heads=2)[0] - f).max() for w, f in zip(batch, forecast, strict=True)
    )
    end = graph_block_flops(length=96, series=21, width=64)
    return [
        Claim(
            "forecasts come in the units of the series",
            "A level added to a series is added to its forecast, and a change of units changes those of the forecast.",
            "0 and 1e-5 over the variance (derived)",
            f"levels off by {lifted:.0e}, units by {scaled:.0e}",
            "reproduced" if lifted < 1e-9 and scaled < 1e-3 else "not reproduced",
        ),
        Claim(
            "a window's forecast depends on its batch",
            "The windows of a batch choose their scales together, so alone a window is forecast differently.",
            "not mentioned; follows from the released code",
            f"forecasts of four windows change by up to {alone:.2f} deviations when each is alone",
            "reproduced" if alone > 1e-6 else "not reproduced",
        ),
        Claim(
            "what a graph layer costs",
            "In a graph layer of the Weather setting (N = 21, D = 64) mixing channels costs as much as mixing times.",
            "2S(G+1)CNT and 2SNT² operations (derived)",
            f"{end.mix:.1e} and {end.end:.1e}; start {end.start:.1e}, hops {end.hops:.1e}, back {end.out:.1e}",
            "reproduced" if end.mix == end.end else "not reproduced",
        ),
    ]


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    tables = Claim(
        "forecasting benchmarks",
        "Best average MSE on 5 of 8 data sets; Flight 0.208 against 0.265 for TimesNet.",
        "average rank 1.813",
        "needs the data sets, and hours of training on a graphics card",
        "not comparable",
    )
    return [*scale_claims(quick=quick), *sign_claims(), *recording_claims(), *model_claims(), tables]


def draw_series(axes: Axes) -> None:
    """Draw a leader and its follower."""
    t = np.arange(T)
    slow, fast = (np.sin(2 * np.pi * t / s) for s in PERIODS)
    axes.plot(t, slow + fast + 2.4, color=BLUE, lw=1.4, label="leader: slow + fast")
    axes.plot(t, slow - fast - 2.4, color=RED, lw=1.4, label="follower: slow − fast")
    axes.set(xlabel="time", yticks=[], ylim=(-5, 6.8))
    axes.legend(frameon=False, loc="upper center", ncols=2, labelcolor="linecolor", fontsize=9)
    axes.set_title("Together at period 24, opposed at period 6", fontsize=10)


def diverging() -> object:
    """Return colours from minus to plus that pass through nothing."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    return LinearSegmentedColormap.from_list("signed", [to_rgba(RED), to_rgba(GREY, 0.08), to_rgba(BLUE)])


def draw_mixing(axes: Axes, matrix: np.ndarray, title: str) -> None:
    """Draw a mixing matrix with its numbers."""
    axes.pcolormesh(matrix, cmap=diverging(), vmin=-1.2, vmax=1.2, edgecolors=GREY, linewidth=0.5)
    for (row, column), value in np.ndenumerate(matrix):
        ink = "white" if abs(value) > 0.5 else GREY
        number = f"{np.round(value, 2) + 0.0:+.2f}"  # no minus zero
        axes.text(column + 0.5, row + 0.5, number, ha="center", va="center", fontsize=10, color=ink)
    names = ("leader", "follower")
    axes.set(xticks=(0.5, 1.5), xticklabels=names, yticks=(0.5, 1.5), aspect="equal", xlabel="from")
    axes.set_yticklabels(names, rotation=90, va="center")
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0, labelsize=8)


def draw_fold(axes: Axes, period: int) -> None:
    """Draw a window as its segments."""
    t = np.arange(T)
    wave = sum(np.sin(2 * np.pi * t / s) for s in PERIODS)
    segments = fold_segments(wave[None, :, None], period=period)[..., 0]
    axes.pcolormesh(segments, cmap=diverging(), vmin=-2, vmax=2, edgecolors=GREY, linewidth=0.3)
    axes.invert_yaxis()
    axes.set(xlabel="place in the segment", ylabel="segment", yticks=[], xticks=[])
    axes.set_title(f"96 times as {len(segments)} × {period}", fontsize=10)


def draw_triangle(axes: Axes, period: int = 6) -> None:
    """Draw which times of one segment see which."""
    sees = np.tri(period)
    axes.pcolormesh(np.where(sees, 0.6, 0.0), cmap=diverging(), vmin=-1, vmax=1, edgecolors=GREY, linewidth=0.5)
    axes.invert_yaxis()
    axes.set(xlabel="is seen", ylabel="sees", xticks=[], yticks=[], aspect="equal")
    axes.set_title("Inside one segment of 6", fontsize=10)


def draw_errors(axes: Axes) -> None:
    """Draw the errors of the sign experiment."""
    _, errors = sign_experiment()
    names = list(errors)
    axes.barh(names, list(errors.values()), color=(BLUE, GOLD, GREY), height=0.6)
    axes.axvline(0.01, color=RED, lw=1.2, ls="--")
    axes.text(0.014, 2.62, "noise floor", color=RED, fontsize=8, va="center")
    axes.set(xlabel="test error on the follower", ylim=(2.9, -0.5))
    axes.set_title("What the signs are worth", fontsize=10)


def figure(quick: bool) -> Figure:
    """Draw a correlation that changes sign with the scale, and how a window is folded.

    Top: a leader and a follower that agree at period 24 and disagree at period 6; the fitted mixing matrices of both
    scales, and the single one that has to serve both, in which the leader is gone (experiment B). Bottom: the same
    window as four segments of 24 times and as sixteen of 6, the mask inside one segment, and the errors of the three
    fits.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    del quick
    mixing, _ = sign_experiment()
    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), GREY)
    with mpl.rc_context({**colours, "xtick.color": GREY, "ytick.color": GREY, "font.size": 9}):
        drawing = Figure(figsize=(12, 6.4), layout="constrained")
        top, bottom = drawing.subfigures(2, 1, height_ratios=(1, 1), hspace=0.05)
        grid = top.subplots(1, 4, width_ratios=(1.7, 1, 1, 1))
        draw_series(grid[0])
        draw_mixing(grid[1], mixing["per scale"][0], "graph at period 24")
        draw_mixing(grid[2], mixing["per scale"][1], "graph at period 6")
        draw_mixing(grid[3], mixing["shared"][0], "one graph for both")
        grid = bottom.subplots(1, 4, width_ratios=(1.7, 0.7, 1, 1.3))
        draw_fold(grid[0], 24)
        draw_fold(grid[1], 6)
        draw_triangle(grid[2])
        draw_errors(grid[3])
        for part in drawing.get_axes():
            part.spines[["top", "right"]].set_visible(False)
    return drawing


if __name__ == "__main__":
    main("msgnet", claims, figure)
