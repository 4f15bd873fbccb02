r"""Trains one stage of a recipe, or all stages.

  python -m experiments.train --stage=semantic
  python -m experiments.train --stage=all --recipe=tiny --workdir=runs/tiny
  python -m experiments.train --stage=coarse --set coarse.train.num_steps=1000 \
    --set coarse.train.batch_size=32
  python -m experiments.train --stage=soundstream --workdir=runs/mine \
    --init_from=runs/theirs/soundstream
  python -m experiments.train --stage=semantic --workdir=gs://bucket/run

A killed run is resumed by the same command. On a TPU pod, run it on every host.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence

import jax

from audiolm_jax import storage, tokens
from audiolm_jax.data import pipeline
from audiolm_jax.errors import UserError
from audiolm_jax.training import checkpoints, configs, loop

from . import inputs, workspace
from . import recipe as recipe_lib
from .cli import command_line, parallel, pod, tracker
from .evaluations import during_training


def main():
  parser = command_line.parser(__doc__, buckets=True)
  parser.add_argument(
    '--stage', required=True, help='a stage of the recipe, or all (a wrong name lists the stages)'
  )
  parser.add_argument(
    '--init_from',
    type=command_line.stored,
    metavar='DIRECTORY',
    help="start from another run's params and state, such as runs/theirs/coarse",
  )
  parser.add_argument(
    '--init_optimizer',
    action='store_true',
    help='with --init_from: take the optimizer state and position in the schedule, too',
  )
  command_line.add_compilation_cache(parser)
  parser.add_argument(
    '--tracker',
    metavar='MODULE:FUNCTION',
    help='also pass metrics to a tracker of yours, see experiments/cli/tracker.py',
  )
  args = parser.parse_args()
  recipe = workspace.recipe_of(args, writes=False)
  if args.stage not in (*recipe.trained, 'all'):
    raise UserError(
      f'--stage={args.stage}: recipe {args.recipe!r} has the stages {", ".join(recipe.trained)}; '
      'choose one, or all'
    )
  if args.stage == 'all' and args.init_from is not None:
    raise UserError(
      '--init_from is the checkpoint of one stage: give that stage by --stage, not all'
    )
  if args.init_from is not None:
    command_line.check_reachable(args.init_from, '--init_from')
  start_tracker = None if args.tracker is None else tracker.load(args.tracker)
  workspace.remember(args)
  command_line.keep_compiled(args)
  if args.stage == 'all':
    workspace.require_imports(recipe, args.workdir)
    train_all(
      recipe,
      args.workdir,
      [
        f'--recipe={args.recipe}',
        f'--workdir={args.workdir}',
        *(f'--set={o}' for o in args.overrides),
      ],
      [] if args.tracker is None else [f'--tracker={args.tracker}'],
    )
  else:
    pod.join_pod()
    pod.check_shared(args.workdir)
    train_stage(
      recipe, args.stage, args.workdir, args.init_from, args.init_optimizer, start_tracker
    )


def train_all(
  recipe: recipe_lib.Recipe,
  workdir: storage.Path,
  arguments: list[str],
  train_arguments: Sequence[str] = (),
):
  """Trains all stages that are not finished, in order, after the programs that make their inputs.

  Each program runs in its own process, so that it starts with all of the memory.

  Args:
    recipe: the recipe.
    workdir: its folder.
    arguments: flags of all programs.
    train_arguments: flags of `train` alone.
  """
  commands = []
  for name, stage in recipe.trained.items():
    of_clips = 'detector_clips' in stage.data.makers
    made_in = inputs.clip_folder(workdir) if of_clips else workdir / 'tokens'
    if is_finished(stage, workdir / name, made_in):
      print(f'{name}: already trained; {workdir / name}')
      continue
    makers = [(maker, *arguments) for maker in stage.data.makers]
    commands += [maker for maker in makers if maker not in commands]
    commands.append(('train', f'--stage={name}', *arguments, *train_arguments))
  parallel.run(commands, num_slots=1)


def is_finished(
  stage: recipe_lib.StageRecipe, directory: storage.Path, made_in: storage.Path
) -> bool:
  """Returns whether a stage needs no training: its newest checkpoint is at the last step or later,
  and was trained with the same config on the existing tokens or clips.

  False if that is not certain: training it then reports what is wrong.

  Args:
    stage: stage of the recipe.
    directory: folder of the stage.
    made_in: folder of the token shards, or of the detector's clips.
  """
  try:
    steps = checkpoints.steps(directory / 'checkpoints')
    if not steps or steps[-1] < stage.train.num_steps:
      return False
    metadata = checkpoints.read_metadata(
      checkpoints.step_folder(directory / 'checkpoints', steps[-1])
    )
    if trained_on := metadata['fingerprints']:
      made_by = storage.read_json(made_in / workspace.MADE_BY, 'encode again')
      spec = getattr(stage.model, 'spec', None)
      if spec is None:  # a stage of audio that models made: it names those that it depends on
        made_by = {maker: made_by.get(maker, '') for maker in trained_on}
      if tokens.changed_makers(trained_on, made_by, spec):
        return False
    return not configs.differences(metadata['config'], configs.describe(stage.model))
  except (UserError, OSError):
    return False


def train_stage(
  recipe: recipe_lib.Recipe,
  name: str,
  workdir: storage.Path,
  init_from: storage.Path | None = None,
  init_optimizer: bool = False,
  start_tracker: tracker.Start | None = None,
):
  """Trains a stage to its last step.

  Resumes from its newest checkpoint. Without one, starts from that in `init_from`, if given.

  Args:
    recipe: the recipe.
    name: name of the stage.
    workdir: folder of the run.
    init_from: workdir or checkpoint directory of another run.
    init_optimizer: whether to take its optimizer state, too.
    start_tracker: starts the tracker of the metrics.

  Raises:
    UserError: if an input of the stage is missing or does not match it.
  """
  stage_recipe = recipe.stages[name]
  config, train = stage_recipe.model, stage_recipe.train
  stage = config.make()
  if stage_recipe.from_code_vectors:
    if 'codes' not in stage.batch:
      raise UserError(
        f'{name}.from_code_vectors=True: the stage {name} reads no codes, but '
        f'{", ".join(stage.batch)}: set it to False'
      )
    # A run that resumes, or has `init_from`, takes all parameters from a checkpoint.
    if init_from is None and not checkpoints.steps(workdir / name / 'checkpoints'):
      stage = config.make(workspace.load_codec(workdir).code_vectors())
  training, held_out, fingerprints = inputs.of_stage(recipe, name, workdir)
  make_batches = functools.partial(
    pipeline.batches,
    training,
    stage.batch,
    batch_size=train.batch_size,
    seed=train.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  make_eval_batches = functools.partial(
    pipeline.evaluation_batches,
    held_out,
    stage.batch,
    batch_size=train.batch_size,
    num_batches=train.eval_batches,
    seed=train.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  log = None
  if start_tracker is not None:
    settings = {'model': dataclasses.asdict(config), 'train': dataclasses.asdict(train)}
    log = tracker.guarded(start_tracker, f'{workdir.name}/{name}', settings)
  started = time.time()
  with workspace.progress(train.num_steps, name, 'step') as bar:

    def report(event):
      bar.update(event['step'] - bar.n)  # backwards after a rollback
      if 'message' in event:
        bar.write(command_line.printable_lines(f'{name}: {event["message"]}'), file=sys.stderr)
      if log is not None:
        log(event['step'], event['metrics'])
      loss = event['metrics'].get('loss')
      if loss is not None:
        bar.set_postfix_str(f'loss {loss:.3f}', refresh=False)

    result = loop.train(
      stage,
      config,
      train,
      make_batches=make_batches,
      make_eval_batches=make_eval_batches,
      workdir=workdir / name,
      fingerprints=fingerprints,
      measurement=during_training.for_stage(config),
      init_from=init_from,
      init_optimizer=init_optimizer,
      report=report,
    )
  where = f'{workdir / name} (metrics.jsonl, goodput.jsonl, checkpoints, TensorBoard events)'
  if result.preempted:
    print(
      f'{name}: interrupted, saved at step {result.step}; the same command resumes it. {where}',
      file=sys.stderr,
    )
    sys.exit(143)
  if result.step > train.num_steps:
    return  # `report` has printed that no steps are left
  seconds = f'{time.time() - started:.0f} s, {result.goodput:.0%} of it in steps'
  print(f'{name}: step {result.step} of {train.num_steps} after {seconds}; {where}', flush=True)


if __name__ == '__main__':
  command_line.run(main)
