"""Controller meta-trained on nineteen families for up to 2,000 steps: how far to step, and along what, a tensor each.

In two parts (`experiments/recipe` has what was measured). First 1,500 meta-steps of back-propagation in windows of 50
steps, each task's gradient clipped by itself: next to no noise, and biased, for it sees no further than a window. From
its φ then this: noise-reuse evolution strategies, one perturbation a task, which have no such bias and much noise.

    metaopt train controller --out runs/controller/start --estimator truncated_backprop:clip_task_norm=0.5 \\
        --num-meta-steps 1500 --num-tasks 38 --meta-optimizer.learning-rate 1e-3 --meta-optimizer.ema 0.99 \\
        --validation.every 0
    metaopt train controller --start runs/controller/start

Horizons are drawn as runs begin, so that short and long ones are in every meta-step, more of them short. The floor of
the objective keeps tasks whose loss goes to zero from deciding alone; the bound on differences makes families weigh
alike, and a run that dies counts as much as it allows. What is validated and saved is an average of φ over about the
last five hundred meta-steps, the best of them by validation at three times the longest horizon.
"""

from metaopt import Experiment, choice
from metaopt.experiment import Curriculum, Evaluation, Log, MetaOptimizer, Validation

FAMILIES = (
    choice("quadratic", dim=20, rescale=2.0),
    choice("quadratic", dim=3, rescale=2.0),
    choice("rosenbrock", pairs=5, rescale=0.5),
    choice("rosenbrock", pairs=1, rescale=1.5),
    choice("styblinski_tang", dim=4, stretch=3.0, rotate=True),
    choice("linear_regression", rescale=1.5),
    choice("linear_regression", dim=100, num_examples=400, density=0.05, rescale=1.0),
    choice("logistic_regression", rescale=1.0),
    choice("logistic_regression", dim=100, num_examples=400, num_classes=8, density=0.03, batch_size=16, rescale=1.0),
    choice("mixture_of_experts", rescale=0.5),
    choice("classifier", hidden_layers=1, rescale=0.5),
    choice("classifier", hidden_layers=3, width=16, batch_norm=True, activation="tanh"),
    choice("classifier", hidden_layers=3, width=16, activation="sigmoid", batch_size=128, rescale=1.0),
    choice("classifier", hidden_layers=2, width=12, activation="tanh", batch_size=256, rescale=1.0),
    choice("classifier", hidden_layers=6, width=12, batch_size=32),
    choice("regression_network", hidden_layers=4, width=12, activation="tanh", batch_size=32, rescale=0.5),
    choice("regression_network", hidden_layers=3, width=12, activation="sigmoid", batch_size=128, rescale=0.5),
    choice("autoencoder", hidden_layers=1, width=48),
    choice("autoencoder", hidden_layers=3, width=12, activation="tanh"),
)

EXPERIMENT = Experiment(
    tasks=FAMILIES,
    optimizer=choice("controller", start="polyak", bound=1.0, brake=1.5, surge=3.0, gain=2.0, early_change=2.0),
    estimator=choice("noise_reuse_evolution_strategies", sigma=0.03, tasks_per_perturbation=1, clip_difference=0.1),
    objective="log_relative:floor=1e-6",
    num_meta_steps=6000,
    num_tasks=95,
    horizon=2000,
    unroll_length=50,
    curriculum=Curriculum(kind="log_uniform", power=1.5),
    meta_optimizer=MetaOptimizer(learning_rate=5e-4, schedule="cosine", final_fraction=0.02, clip_norm=1.0, ema=0.998),
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
