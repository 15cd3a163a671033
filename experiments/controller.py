"""Controller meta-trained on ten families for up to 2,000 steps: how far to step, and along what, a tensor each.

Noise-reuse evolution strategies in windows of 50 steps, one perturbation a task; horizons are drawn log-uniformly as
runs begin, so that short and long ones are in every meta-step. The floor of the objective and the bound on differences
keep tasks whose loss goes to zero from deciding alone, and a run that dies counts as much as that bound allows. σ is
what `experiments/recipe` found: a third of it has half the signal to noise. What is validated and saved is an average
of φ over about the last five hundred meta-steps, the best of them by validation at three times the longest horizon.
About an hour of one core.
"""

from metaopt import Experiment, choice
from metaopt.experiment import Curriculum, Evaluation, Log, MetaOptimizer, Validation

FAMILIES = (
    choice("quadratic", dim=20, rescale=1.0),
    choice("quadratic", dim=30, rescale=2.0),
    choice("rosenbrock", pairs=5, rescale=0.5),
    choice("linear_regression", rescale=1.0),
    choice("logistic_regression", rescale=1.0),
    choice("classifier", hidden_layers=1, rescale=0.5),
    choice("classifier", hidden_layers=3, width=16, batch_norm=True, activation="tanh"),
    choice("classifier", hidden_layers=2, width=16, activation="sigmoid", rescale=1.0),
    choice("classifier", hidden_layers=2, width=12, activation="tanh", batch_size=512, rescale=1.0),
    choice("autoencoder", hidden_layers=1, width=16),
)

EXPERIMENT = Experiment(
    tasks=FAMILIES,
    optimizer=choice("controller", bound=1.0),
    estimator=choice("noise_reuse_evolution_strategies", sigma=0.03, tasks_per_perturbation=1, clip_difference=2.0),
    objective="log_relative:floor=1e-6",
    num_meta_steps=16000,
    num_tasks=80,
    horizon=2000,
    unroll_length=50,
    curriculum=Curriculum(kind="log_uniform"),
    meta_optimizer=MetaOptimizer(learning_rate=1e-3, schedule="cosine", final_fraction=0.02, clip_norm=1.0, ema=0.998),
    validation=Validation(every=1000, num_tasks=6, multiples=(1, 3)),
    checkpoint_every=250,
    evaluation=Evaluation(
        tasks=(choice("classifier", hidden_layers=1), choice("classifier", hidden_layers=3, batch_norm=True)),
        horizons=(50, 500, 5000),
        num_tasks=8,
        tuning="9x1",
    ),
    log=Log(every=25),
)
