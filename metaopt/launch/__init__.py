"""`metaopt launch`: where jobs run. One experiment in several processes, or a sweep of runs, here or on Slurm."""

from __future__ import annotations

HELP = """\
usage: metaopt launch EXPERIMENT --sweep FIELD=A,B,C ... [--seeds N] [--where local|slurm] [--field value ...]
       metaopt launch EXPERIMENT [--processes N] [--field value ...]
       metaopt launch --resume RUN [--processes N] [--num-meta-steps ...]

With --sweep, --seeds or --where: many runs, one for each point of a grid, into one folder.

  --sweep FIELD=A,B,C     a field of the experiment and its values, as on the command line of `metaopt train`; again for
                          further fields. `;` separates the values where one of them holds a comma, and a lone value
                          with commas ends in `;`: 'optimizer=lstm:hidden_size=8,num_layers=1;rnnprop'. A field that
                          takes several words has them separated by spaces: 'validation.multiples=1 10;1 5'
  --sweep FILE            a .yaml or .json file of FIELD: [A, B, C], with `seeds: N` if wanted
  --seeds N               each point with the seeds S ... S+N-1, where S is the experiment's `seed`
  --out FOLDER            the sweep's folder; default: the next runs/EXPERIMENT/sweep-NNN
  --dry-run               check and show the points, and start nothing
  --where local           here, as many at once as there are cores, each with its own (the default)
  --workers N             so many at once
  --detach                in the background
  --where slurm           as a job array; needs `pip install 'metaopt-jax[slurm]'`
  --partition P, --time T, --cpus N, --gpus N, --mem GB
                          of each job; T in minutes or [DAYS-]HOURS:MINUTES:SECONDS; --workers: at once
  --slurm KEY=VALUE       anything else that submitit or sbatch knows; may be repeated

`metaopt status`, `metaopt cancel` and `metaopt resume` take the sweep's folder, or that of a run.

Without them: one run in N processes of this machine, one for each core unless told otherwise, each with its own share
of the tasks; the first one writes the run folder. All options of `metaopt train` are taken. For CPUs: one process of
`metaopt train` uses all GPUs of a machine. On Slurm, `srun metaopt train EXPERIMENT` does the same without it.
"""


def launch(arguments: list[str]) -> None:
    """Runs a sweep, or one experiment in several processes; raises SystemExit with the status to end with, 0 apart.

    Raises:
      UserError: a mistake in the arguments or in a point; nothing was started.
    """
    if len(arguments) == 1 and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    from metaopt.launch.options import take_options

    options = take_options(arguments)
    if options is None:
        from metaopt.launch import process_group

        process_group.launch(arguments)
    else:
        from metaopt.launch import sweeps

        sweeps.start(options)
