"""Training a prior over a tokenizer's codes: what the loop of `train.py` has to know of it."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from vq_jax import config as configs
from vq_jax.data.codes import read_about
from vq_jax.data.pipeline import eval_batches, train_batches
from vq_jax.data.sources import open_source
from vq_jax.errors import UserError, first_line
from vq_jax.interop.weights import differences, flat, listing
from vq_jax.models.transformer import stack
from vq_jax.prior import TrainedPrior, check_fingerprint, load_prior, load_tokenizer
from vq_jax.tasks.evaluate_prior import measure
from vq_jax.tasks.job import Job
from vq_jax.tokenizer import TrainedTokenizer, has_checkpoints
from vq_jax.training import parallel
from vq_jax.training.optim import make_optimizer, make_ramp
from vq_jax.training.prior_steps import PriorRecipe, init_prior_state, prior_step
from vq_jax.training.state import PriorState
from vq_jax.training.steps import Phase
from vq_jax.training.watch import Watch


def make_prior_recipe(config: ConfigDict, tokenizer: Any = None) -> PriorRecipe:
    """Module, optimizer and weights of a config; `tokenizer`, a module, makes codes in the step."""
    loss = config.loss
    permute = make_ramp(*loss.permute) if loss.permute else (lambda step: 1.0)
    return PriorRecipe(
        prior=configs.make_prior(config),
        tokenizer=tokenizer,
        optimizer=make_optimizer(config.optim, sum(config.phases.values())),
        label_smoothing=loss.label_smoothing,
        label_dropout=loss.label_dropout,
        least_masked=loss.least_masked,
        permute=permute,
        ema_decay=config.ema_decay,
    )


def describe_codes(
    config: ConfigDict, tokenizer: TrainedTokenizer, classes: tuple[str, ...]
) -> None:
    """Writes down in `config.codes` what the tokenizer and the data say.

    Raises:
      UserError: the images are not of a size that the tokenizer takes.
    """
    data, theirs = config.data, tokenizer.config.data
    shape = configs.image_shape(tokenizer.config)
    if data.source != "codes" and configs.image_shape(config) != shape:
        raise UserError(
            f"the tokenizer was trained on {theirs.resolution}x{theirs.resolution}x"
            f"{theirs.channels} images: use --config.data.resolution={theirs.resolution} "
            f"--config.data.channels={theirs.channels}"
        )
    places = len(tokenizer.grid) - len(tokenizer.code_shape)
    codes = config.codes
    codes.num_codes = tokenizer.num_codes
    codes.books = math.prod(tokenizer.code_shape)
    codes.grid = tokenizer.grid[:places]
    codes.image = shape
    codes.classes = classes if any(classes) else ()
    codes.condition = ()
    if (degrade := configs.make_condition(config)) is not None:
        try:
            worse = degrade(np.zeros(shape, np.uint8), None)
            if tokenizer.factor is None and worse.shape != shape:
                raise ValueError(f"it takes images of {shape[0]}x{shape[1]} pixels only")
            codes.condition = jax.eval_shape(
                tokenizer.encode_unchecked, jax.ShapeDtypeStruct((1, *worse.shape), np.float32)
            ).shape[1 : 1 + places]
        except (ValueError, TypeError) as e:
            raise UserError(
                f"condition {config.condition.name}: the tokenizer cannot take its image: {first_line(e)}"
            ) from e


def _started(config: ConfigDict, workdir: Path, shapes: PriorState) -> Any:
    """The params that `config.start_from` names; {} where it names none, or the run has its own."""
    if not config.start_from or has_checkpoints(workdir):
        return {}
    params = jax.device_get(load_prior(config.start_from, config.tokenizer).params)
    if config.prior.scan:
        params = stack(params, config.prior.layers)
    if lines := differences(flat(params), flat(shapes.prior.params)):
        raise UserError(
            f"start_from={config.start_from} does not fit this config:" + listing(lines)
        )
    return params


def prior_job(config: ConfigDict, workdir: Path, key: jax.Array) -> Job:
    """The training that a prior's config describes.

    Args:
      config: checked; its `codes` are filled in.
      workdir: the run's folder.
      key: the params are drawn from it.
    """
    parallel.check(config.parallel, config.data.batch_size)
    tokenizer = load_tokenizer(config.tokenizer, "--config.tokenizer")
    splits = open_source(config.data, config.seed)
    from_codes = config.data.source == "codes"
    if from_codes:
        about = read_about(Path(config.data.folder))
        check_fingerprint(tokenizer, list(bytes.fromhex(about["fingerprint"])), config.data.folder)
    with config.unlocked():
        describe_codes(config, tokenizer, splits.class_names)
    degrade = configs.make_condition(config)
    if next(eval_batches(splits.val, config.data, degrade), None) is None:
        raise UserError("nothing held out could be read: see data.val_fraction and the log")
    recipe = make_prior_recipe(config, None if from_codes else tokenizer.module)
    fingerprint = np.frombuffer(tokenizer.fingerprint, np.uint8)
    variables = {} if from_codes else jax.device_get(tokenizer.variables)

    fresh = partial(init_prior_state, recipe)
    started = _started(config, workdir, jax.eval_shape(fresh, key, fingerprint, variables))

    def init(key: jax.Array, fingerprint: Any, variables: Any, started: Any) -> PriorState:
        state = fresh(key, fingerprint, variables)
        if not started:
            return state
        copy = jax.tree.map(jnp.copy, started)
        return state.replace(prior=state.prior.replace(params=started, ema_params=copy))

    def make() -> PriorState:
        return parallel.make_state(init, key, fingerprint, variables, started, fsdp=config.fsdp)

    def measured(state: PriorState, console: Console) -> dict[str, Any]:
        params = parallel.fetch(state.prior.ema_params)
        if jax.process_index():
            return {}
        params = jax.device_put(params, jax.local_devices()[0])
        prior = TrainedPrior(config, tokenizer, recipe.prior, params, int(state.step))
        return measure(prior, splits, workdir, console)

    return Job(
        config=config,
        workdir=workdir,
        phases=[Phase("prior", config.phases.prior, 0)],
        splits=splits,
        batches=lambda: train_batches(
            splits.train,
            config.data,
            config.seed,
            jax.process_index(),
            jax.process_count(),
            degrade=degrade,
            place=partial(parallel.shard_batch, parallel=config.parallel),
        ),
        init=make,
        step=lambda phase: partial(prior_step, recipe=recipe),
        prepare=lambda state, step, key: state,
        networks=lambda state: {"prior": state.prior.params},
        watch=lambda state, warn: Watch(int(state.skipped)),
        measure=measured,
        check=lambda state: check_fingerprint(tokenizer, state.fingerprint, workdir),
        places={"nearest training images": "nearest.png", "samples by class": "samples.png"}
        if degrade is None
        else {"as given, made better, originals": "samples.png"},
    )
