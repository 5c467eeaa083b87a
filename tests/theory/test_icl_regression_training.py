"""Training of in-context linear regression: gradients, trajectories, replicas, and what is refused."""

import numpy as np
import pytest

from refattn.layers.icl_regression import (
    ICLAttentionWeights,
    icl_attention_grad,
    pattern_weights,
    weights_from_projections,
)
from refattn.layers.icl_regression_training import train_on_stream
from theory.icl_regression import averaged_models, training
from theory.icl_regression.averaged_models import AveragedModel, averages, initial_heads
from theory.icl_regression.descent import Descent
from theory.icl_regression.experiments_training import TRAINING
from theory.icl_regression.full_model import FullModel, HeadParameters, initial_weights, softmax_in_place
from theory.icl_regression.losses import population_grad, population_loss
from theory.icl_regression.reduced import prompt_gradients, prompt_losses
from theory.icl_regression.samplers import ar1_covariance, sample_prompts
from theory.icl_regression.training import evaluate, fast_generator, pattern_metrics, train_icl, trapped

SUPPORTS = ((0, 1), (1, 2, 3))


def tokens(seed=0):
    """Return question tokens, example tokens and answers of some prompts."""
    x, y, x_q, y_q, _ = sample_prompts(7, 6, 4, 0.1, np.random.default_rng(seed))
    return np.pad(x_q, ((0, 0), (0, 1))), np.concatenate([x, y[..., None]], -1), y_q[:, None]


def replica(weights, r):
    """Return one replica's weights."""
    return type(weights)(*(w[r] for w in weights))


def full(replicas=3, n_head=2, **options):
    weights = initial_weights("random", n_head, 4, np.random.default_rng(1), replicas=replicas)
    return FullModel(weights, **{"length": 6, "batch": 7, "noise_var": 0.1} | options)


def averaged(model, *, supports=None, cov=None, replicas=2, n_head=3, batch=5):
    n_task = None if supports is None else len(supports)
    heads = initial_heads(model, n_head, 4, np.random.default_rng(2), replicas=replicas, n_task=n_task)
    heads = HeadParameters(*(4 * p for p in heads))
    average = averages(model, 4, 0.1, supports=supports, cov=cov)
    return AveragedModel(heads, model=model, average=average, dim=4, length=6, batch=batch, cov=cov)


VARIANTS = {
    "reduced": {"model": "reduced"},
    "diagonal": {"model": "diagonal"},
    "semi": {"model": "semi"},
    "semi-correlated": {"model": "semi", "cov": ar1_covariance(4, 0.5)},
    "diagonal-tasks": {"model": "diagonal", "supports": SUPPORTS},
    "semi-tasks": {"model": "semi", "supports": SUPPORTS},
}


def test_full_gradient_is_the_references():
    """Loss and gradient of every replica are those of the reference on the same batch."""
    model, batch = full(), tokens()
    model.load(*batch)
    losses = model.loss_and_gradient()
    gradient = model.gradient.copy()
    model.parameters[:] = gradient  # so that the gradient can be read as weights
    gradients = model.weights
    for r, loss in enumerate(losses):
        expected_loss, expected = icl_attention_grad(*batch, replica(full().weights, r))
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-13)
        for ours, theirs in zip(replica(gradients, r), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("variant", VARIANTS)
def test_averaged_gradient_is_the_slope_of_the_loss(variant):
    """Central differences of the loss give the gradient, in every parameter of every replica."""
    model = averaged(**VARIANTS[variant])
    model.draw(np.random.default_rng(3))
    model.loss_and_gradient()
    start, slope, step = model.parameters.copy(), np.empty_like(model.parameters), 1e-5
    for i in range(len(start)):
        ends = []
        for sign in (1, -1):
            model.parameters[:] = start
            model.parameters[i] += sign * step
            ends.append(model.loss().sum())
        slope[i] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(slope, model.gradient, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("variant", ["diagonal", "semi-correlated", "diagonal-tasks"])
def test_averaged_loss_is_the_mean_over_rules_and_noises(variant):
    """Averaging over sampled rules and noises, at fixed covariates, gives the loss within four standard errors."""
    model = averaged(**VARIANTS[variant], replicas=1)
    rng = np.random.default_rng(4)
    x, x_q = rng.standard_normal((5, 6, 4)), rng.standard_normal((5, 4))
    model.load(x, x_q)
    omega, mu = replica(model.weights, 0)
    scores = np.einsum("blj,hjk,bk->bhl", x, np.stack([w if w.ndim == 2 else np.diag(w) for w in omega]), x_q)
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    supports = VARIANTS[variant].get("supports")
    tasks = [range(4)] if supports is None else supports
    draws, total = 20_000, 0.0
    for n, support in enumerate(tasks):
        mask, size = np.isin(range(4), support), len(support)
        beta = mask * rng.standard_normal((draws, 5, 4)) / (size**0.5 if supports is None else 1)
        noise = (0.1 * (1 if supports is None else size)) ** 0.5
        y = np.einsum("nbj,blj->nbl", beta, x) + noise * rng.standard_normal((draws, 5, 6))
        y_q = np.einsum("nbj,bj->nb", beta, x_q)
        y_q += noise * rng.standard_normal((draws, 5)) if supports is None else 0
        weight = np.einsum("h,bhl->bl", mu.reshape(3, -1)[:, n], p)
        total = total + np.mean((np.einsum("bl,nbl->nb", weight, y) - y_q) ** 2, -1) / len(tasks)
    assert abs(total.mean() - model.loss()[0]) < 4 * total.std() / draws**0.5


def test_reduced_gradient_is_that_of_single_prompts():
    """On given scores the reduced model has the mean of the losses and gradients of the single prompts."""
    model = averaged("reduced", replicas=1)
    rng = np.random.default_rng(5)
    r, u = np.sqrt(rng.chisquare(4, 5)), rng.standard_normal((5, 6))
    model.load(u[..., None], r[:, None])
    loss = model.loss_and_gradient()
    omega, mu = replica(model.weights, 0)
    np.testing.assert_allclose(loss, prompt_losses(mu, omega, r, u, 4, 0.1).mean(), rtol=1e-13)
    d_mu, d_omega = (g.mean(0) for g in prompt_gradients(mu, omega, r, u, 4, 0.1))
    np.testing.assert_allclose(model.gradient, np.concatenate([d_omega, d_mu]), rtol=1e-12)


def test_reduced_gradient_has_the_population_gradient_as_its_mean():
    """The mean gradient over many batches is the exact one within four standard errors."""
    heads = HeadParameters(np.array([[0.3, -0.2]]), np.array([[1.5, -1.0]]))
    average = averages("reduced", 4, 0.1)
    model = AveragedModel(heads, model="reduced", average=average, dim=4, length=6, batch=500)
    rng, gradients = fast_generator(6), []
    for _ in range(100):
        model.draw(rng)
        model.loss_and_gradient()
        gradients.append(model.gradient.copy())
    _, d_mu, d_omega = population_grad(heads.mu[0], heads.omega[0], 4, 6, 0.1)
    error = np.abs(np.mean(gradients, 0) - np.concatenate([d_omega, d_mu]))
    assert np.all(error < 4 * np.std(gradients, 0) / 10)


def load_sampled(model, variant, rng):
    """Let a model take prompts from the sampler instead of its own."""
    cov = VARIANTS.get(variant, {}).get("cov")
    x, y, x_q, y_q, _ = sample_prompts(200, 6, 4, 0.1, rng, cov=cov)
    if variant == "full":
        model.load(np.pad(x_q, ((0, 0), (0, 1))), np.concatenate([x, y[..., None]], -1), y_q[:, None])
    elif variant == "reduced":
        r = np.linalg.norm(x_q, axis=-1, keepdims=True)
        model.load(x @ (x_q / r)[..., None], r)
    else:
        model.load(x, x_q)


@pytest.mark.parametrize("variant", ["full", "reduced", "diagonal", "semi-correlated"])
def test_models_draw_what_the_sampler_draws(variant):
    """The mean loss over drawn batches is that over prompts from the sampler, within the noise of both."""
    model = full(batch=200) if variant == "full" else averaged(**VARIANTS[variant], batch=200)
    rng, drawn, sampled = np.random.default_rng(7), [], []
    for _ in range(100):
        model.draw(rng)
        drawn.append(model.loss())
        load_sampled(model, variant, rng)
        sampled.append(model.loss())
    stderr = np.hypot(np.std(drawn, 0), np.std(sampled, 0)) / 10
    assert np.all(np.abs(np.mean(drawn, 0) - np.mean(sampled, 0)) < 4 * stderr)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_updates_are_the_references(optimizer):
    """On one stream the fast layout and its update in place walk the way of the reference's pure functions."""
    batches = [tokens(seed=seed) for seed in range(12)]
    model = full()
    start = model.weights
    descent = Descent(optimizer, 0.03, model.parameters.size)
    losses = []
    for batch in batches:
        model.load(*batch)
        losses.append(model.loss_and_gradient())
        descent.update(model.parameters, model.gradient)
    for r in range(3):
        stream = (np.stack(a) for a in zip(*batches, strict=True))
        expected = train_on_stream(*stream, replica(start, r), lr=0.03, method=optimizer)
        np.testing.assert_allclose(np.array(losses)[:, r], expected.losses, rtol=0, atol=1e-12)
        for ours, theirs in zip(replica(model.weights, r), expected.weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_official_trajectories(oracle):
    """SGD, Adam and AdamW end where PyTorch's do on the official streams, with the same losses on the way."""
    seen = set()
    for path in oracle("22-icl-linear-regression"):
        with np.load(path) as case:
            if str(case["kind"]) != "training_trajectory":
                continue
            n_head, method = int(case["n_head"]), str(case["method"]).lower()
            start, end = (
                weights_from_projections(*(case[f"{when}_{name}_proj"] for name in "kqvo"), n_head=n_head)
                for when in ("init", "final")
            )
            _, batch, length, _ = case["z"].shape
            weights = ICLAttentionWeights(*(w[None] for w in start))
            model = FullModel(weights, length=length, batch=batch, noise_var=0.0)
            descent = Descent(method, float(case["lr"]), model.parameters.size)
            for z_q, z, y, loss in zip(case["z_q"], case["z"], case["y_q"], case["losses"], strict=True):
                model.load(z_q[:, 0], z, y[:, 0])
                np.testing.assert_allclose(model.loss_and_gradient(), loss, rtol=0, atol=1e-12)
                descent.update(model.parameters, model.gradient)
            for ours, theirs in zip(replica(model.weights, 0), end, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
            seen.add(method)
    assert seen


@pytest.mark.parametrize("model", training.MODELS)
def test_replicas_are_runs_of_their_own(model):
    """Replica r of a joint run is what the same start becomes alone on the same stream."""
    options = {"steps": 6, "batch": 8, "lr": 0.02, "model": model, "log_every": 2}
    unmoved = train_icl(2, 3, 5, 0.1, **options | {"steps": 0}, replicas=3, rng=fast_generator(1)).weights
    together = train_icl(2, 3, 5, 0.1, **options, replicas=3, rng=fast_generator(1))
    assert together.step.tolist() == [0, 2, 4, 6]
    for r in range(3):
        start = type(unmoved)(*(w[r : r + 1] for w in unmoved))
        alone = train_icl(2, 3, 5, 0.1, **options, init=start, rng=fast_generator(1))
        np.testing.assert_allclose(alone.loss[:, 0], together.loss[:, r], rtol=1e-12)
        for one, many in zip(alone.weights, together.weights, strict=True):
            np.testing.assert_allclose(one[0], many[r], rtol=1e-9, atol=1e-13)


def test_more_replicas_change_neither_start_nor_stream():
    """The first replica of three is the only replica of one."""
    options = {"steps": 4, "batch": 8, "lr": 0.02, "model": "semi"}
    one, three = (train_icl(2, 3, 5, 0.1, **options, replicas=n, rng=fast_generator(2)) for n in (1, 3))
    np.testing.assert_allclose(one.loss[:, 0], three.loss[:, 0], rtol=1e-12)


def test_one_seed_begins_one_run():
    """A seed sequence that is used twice gives the same run twice; its sibling gives another."""
    seed, sibling = (np.random.SeedSequence(3, spawn_key=(key,)) for key in (4, 5))
    options = {"steps": 3, "batch": 8, "lr": 0.02, "dtype": np.float32}
    first, second, other = (train_icl(2, 3, 5, 0.1, **options, rng=fast_generator(s)) for s in (seed, seed, sibling))
    np.testing.assert_array_equal(first.loss, second.loss)
    assert np.all(first.loss != other.loss)
    assert first.weights.w_k.dtype == np.float32


def test_float32_walks_beside_float64():
    """In float32 the model computes the same gradient to float32's accuracy."""
    gradients = []
    for dtype in (np.float32, np.float64):
        model = full(dtype=dtype)
        model.load(*tokens())
        model.loss_and_gradient()
        gradients.append(model.gradient)
    assert gradients[0].dtype == np.float32
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=0, atol=1e-6)


def test_large_scores_are_shifted():
    """Scores beyond the limits of exp give the softmax that their differences say."""
    scores = np.array([[1000.0, -5.0], [999.0, -700.0], [-3000.0, -705.0]])
    expected = np.exp(scores - scores.max(0)) / np.exp(scores - scores.max(0)).sum(0)
    softmax_in_place(scores)
    np.testing.assert_allclose(scores, expected, rtol=1e-15)


def test_training_finds_the_pattern():
    """A short run of two opposite heads comes near the best debiased step, far below the loss of one head."""
    start = HeadParameters(np.array([[0.1, -0.1]]), np.array([[0.1, -0.1]]))
    result = train_icl(2, 5, 40, 0.1, steps=800, batch=64, lr=0.02, rng=fast_generator(0), model="reduced", init=start)
    assert not result.trapped[0]
    assert result.loss[-1, 0] < 0.3
    assert 0.8 < np.sum(result.mu[-1] * result.omega[-1]) < 0.95


def test_divergence_says_where():
    """A run that explodes stops, and names the step and the loss."""
    with pytest.raises(FloatingPointError, match=r"training diverged at step \d+: loss=.* in replica \d"):
        train_icl(2, 3, 5, 0.1, steps=500, batch=8, lr=50.0, rng=fast_generator(0), optimizer="sgd", model="reduced")


def test_metrics_of_planted_weights():
    """Weights built from the pattern measure as the pattern; a planted fault shows in its metric alone."""
    omega, mu = np.array([0.2, -0.1, 0.3]), np.array([1.5, -2.0, 0.25])
    planted = pattern_weights(omega, mu, dim=4)
    metrics = pattern_metrics(planted)
    expected = {"diag_ratio": 1, "diag_cv2": 0, "ov_last_ratio": 1, "sum_mu": -0.25, "mu_dot_omega": omega @ mu}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, atol=1e-15)

    w_q = planted.w_q.copy()
    w_q[0, 0, 1] = w_q[0, 0, 0]  # an entry beside the diagonal, as large as one on it
    assert pattern_metrics(planted._replace(w_q=w_q))["diag_ratio"] == pytest.approx((2 + 0.8**0.5) / 3)
    w_o = planted.w_o.copy()
    w_o[1, 0, 0] = 2.0
    assert pattern_metrics(planted._replace(w_o=w_o))["ov_last_ratio"] == pytest.approx((2 + 0.5**0.5) / 3)
    w_q = planted.w_q.copy()
    w_q[2, 0, 0] *= 3
    assert pattern_metrics(planted._replace(w_q=w_q))["diag_cv2"] == pytest.approx(1 / 9)


def test_metrics_of_replicas():
    """With a leading axis of replicas each replica is measured alone."""
    weights = initial_weights("random", 2, 4, np.random.default_rng(0), replicas=3)
    for name, values in pattern_metrics(weights).items():
        single = [pattern_metrics(replica(weights, r))[name] for r in range(3)]
        np.testing.assert_allclose(values, single, rtol=1e-13)


def test_heads_of_the_full_model():
    """The reading of the full model is ω and μ of the pattern, where the pattern holds."""
    omega, mu = np.array([0.2, -0.1]), np.array([1.5, -2.0])
    weights = ICLAttentionWeights(*(w[None] for w in pattern_weights(omega, mu, dim=4)))
    heads = FullModel(weights, length=6, batch=7, noise_var=0.1).heads
    np.testing.assert_allclose(heads.omega, [omega], rtol=1e-14)
    np.testing.assert_allclose(heads.mu, [mu], rtol=1e-14)


def test_who_is_trapped():
    """A model is trapped where one sign prevails in some task; one head alone never is."""
    assert trapped(np.array([[3.0, -3.0], [1.0, 2.0], [-1.0, -0.1]])).tolist() == [False, True, True]
    assert trapped(np.array([[3.0]])).tolist() == [False]
    assert trapped(np.array([[[1.0, 1.0], [-1.0, 2.0]]])).tolist() == [True]


def test_evaluation_of_planted_weights():
    """On fresh prompts planted weights have the exact loss of their pattern, within four standard errors."""
    omega, mu = np.array([0.2, -0.1]), np.array([1.5, -2.0])
    weights = ICLAttentionWeights(*(w[None] for w in pattern_weights(omega, mu, dim=4)))
    loss, stderr = evaluate(weights, 9, 0.1, prompts=40_000, rng=np.random.default_rng(8))
    assert abs(loss[0] - population_loss(mu, omega, 4, 9, 0.1).value) < 4 * stderr[0]


def test_degenerate_prompts_can_be_trained_on():
    """One token, one covariate, no noise, one head: the loss stays finite."""
    result = train_icl(1, 1, 1, 0.0, steps=3, batch=2, lr=0.01, rng=fast_generator(0))
    assert np.isfinite(result.loss).all()


GOOD = {"steps": 2, "batch": 4, "lr": 0.1}
TWO_HEADS = HeadParameters(np.zeros((1, 2)), np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 0}, "n_head=0 times replicas=1 must be >= 1"),
        ({"replicas": 0}, "n_head=3 times replicas=0 must be >= 1"),
        ({"init": "oppo_small_id"}, "n_head=3 must be even"),
        ({"init": "zeros"}, "'zeros' is not one of"),
        ({"model": "linear"}, "model='linear' is not one of"),
        ({"optimizer": "lion"}, "optimizer='lion' is not one of"),
        ({"lr": 0.0}, "lr=0.0 must be finite and > 0"),
        ({"lr": np.nan}, "lr=nan must be finite and > 0"),
        ({"weight_decay": 0.1}, "weight_decay=0.1 belongs to optimizer='adamw'"),
        ({"weight_decay": -0.1, "optimizer": "adamw"}, "weight_decay=-0.1 must be >= 0"),
        ({"length": 0}, "length must be >= 1"),
        ({"dim": 0}, "dim must be >= 1"),
        ({"noise_var": -1.0}, "noise_var=-1.0 must be >= 0"),
        ({"batch": 0}, "batch=0 must be >= 1"),
        ({"steps": -1}, "steps=-1 must be >= 0"),
        ({"log_every": 0}, "log_every=0 must be >= 1"),
        ({"cov": np.eye(4)}, "model='full' has neither cov nor supports"),
        ({"model": "reduced", "cov": np.eye(4)}, "model='reduced' has neither cov nor supports"),
        ({"model": "semi", "cov": np.eye(3)}, "cov has shape"),
        ({"model": "diagonal", "supports": ((0, 4),)}, r"must lie in \[0, 4\)"),
        ({"model": "reduced", "init": "small_id"}, "init='small_id' is not one of"),
        ({"model": "reduced", "init": TWO_HEADS}, "1 replicas of 2 heads, expected 1 of 3"),
        ({"model": "full", "init": TWO_HEADS}, "init must be ICLAttentionWeights"),
        ({"model": "semi", "init": TWO_HEADS}, "omega has shape"),
        ({"model": "reduced", "n_head": 2, "init": TWO_HEADS._replace(mu=np.full((1, 2), np.inf))}, "must be finite"),
    ],
)
def test_bad_arguments(changes, message):
    """What cannot be trained is refused with the argument's name, its value and the rule."""
    arguments = {"n_head": 3, "dim": 4, "length": 5, "noise_var": 0.1} | GOOD | changes
    with pytest.raises(ValueError, match=message):
        train_icl(**arguments, rng=fast_generator(0))


def test_bad_batches():
    """A batch of another shape is refused."""
    z_q, z, y = tokens()
    with pytest.raises(ValueError, match=r"z has shape \(7, 5, 5\), expected \(7, 6, 5\)"):
        full().load(z_q, z[:, 1:], y)
    with pytest.raises(ValueError, match="x has shape"):
        averaged("semi").load(np.zeros((5, 6, 3)), np.zeros((5, 4)))


@pytest.mark.parametrize("experiment", TRAINING, ids=lambda e: e.name)
def test_bad_parameters_of_experiments(experiment):
    """Every training experiment refuses parameters that no run could have."""
    for field, value in (("steps", 0), ("lr", -1.0), ("heads", ()), ("replicas", 0), ("length", 1), ("dim", 0)):
        with pytest.raises(ValueError, match=field):
            experiment.parameters(**{field: value})


def test_averaged_models_are_the_named_ones():
    """Each model but the full one is an averaged model."""
    assert set(training.MODELS) == {"full", *averaged_models.AVERAGED}
