"""The training run of a prior over a tokenizer's codes, for the loop in `train.py`."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax import modalities
from vq_jax.console import stderr
from vq_jax.data.codes import read_metadata
from vq_jax.errors import UserError, first_line
from vq_jax.interop.weights import differences, flat, listing
from vq_jax.models import Prior
from vq_jax.models.transformer import stack
from vq_jax.prior import TrainedPrior
from vq_jax.runs import check_fingerprint, find, has_checkpoints, load_tokenizer_of, read_prior
from vq_jax.tasks.job import Job, check_held_out, training_batches
from vq_jax.tokenizer import TrainedTokenizer
from vq_jax.training import parallel
from vq_jax.training.optim import make_optimizer, make_ramp
from vq_jax.training.prior_steps import PriorRecipe, init_prior_state, prior_step
from vq_jax.training.state import PriorState
from vq_jax.training.steps import Phase
from vq_jax.training.watch import Watch


def make_prior_recipe(
    config: ConfigDict, tokenizer: Any = None, opened: TrainedTokenizer | None = None
) -> PriorRecipe:
    """Makes module, optimizer and loss weights of a config.

    Args:
      config: a prior's.
      tokenizer: module that encodes examples in the step; None if batches are codes.
      opened: the tokenizer with its variables; None only for shapes.
    """
    loss = config.loss
    prior = configs.make_prior(config)
    permute = make_ramp(*loss.permute) if loss.permute else (lambda step: 1.0)
    return PriorRecipe(
        prior=prior,
        constants={} if opened is None else _constants(prior, opened),
        tokenizer=tokenizer,
        optimizer=make_optimizer(config.optim, sum(config.phases.values())),
        label_smoothing=loss.label_smoothing,
        label_dropout=loss.label_dropout,
        least_masked=loss.least_masked,
        permute=permute,
        ema_decay=config.ema_decay,
    )


def _constants(prior: Prior, tokenizer: TrainedTokenizer) -> dict[str, Any]:
    """Returns a prior's collections besides `params`, on this host."""
    try:
        return jax.device_get(prior.constants(tokenizer.module, tokenizer.variables))
    except ValueError as e:
        raise UserError(str(e)) from e


def describe_codes(
    config: ConfigDict,
    tokenizer: TrainedTokenizer,
    classes: tuple[str, ...],
    before: ConfigDict | None = None,
) -> None:
    """Fills in `config.codes`, from the tokenizer and the data.

    Args:
      config: a prior's.
      tokenizer: of its codes.
      classes: their names.
      before: config of the run that continues, or of that whose weights training starts from; None for a new
        prior. One from before priors knew the levels of a pyramid goes on without them.

    Raises:
      UserError: the tokenizer takes examples of another shape or kind.
    """
    spec, theirs = tokenizer.codes, tokenizer.config
    noun = tokenizer.modality.noun
    if config.modality != theirs.modality:
        raise UserError(
            f"modality is {config.modality!r}, and the tokenizer's is {theirs.modality!r}"
        )
    if config.data.source != "codes" and configs.spec_of(config).shape != tokenizer.spec.shape:
        fields = tokenizer.modality.shape_fields
        wanted = ", ".join(f"data.{field}={theirs.data[field]}" for field in fields)
        raise UserError(
            f"the tokenizer was trained on {noun}s of shape {tokenizer.spec.shape}: set {wanted}"
        )
    codes = config.codes
    codes.num_codes, codes.books, codes.grid = spec.num_codes, spec.books, spec.grid
    by_scale = config.prior.name == "next_scale"
    # A causal prior from before it knew of scales reads them as one sequence.
    flat_before = before is not None and not by_scale and not before.codes.grids
    codes.grids = () if flat_before else spec.grids
    codes.latent = tokenizer.module.quantizer.dim if by_scale else 0
    codes.radices = tokenizer.module.quantizer.radices if config.prior.get("digits") else ()
    codes.example = tokenizer.spec.shape
    codes.classes = classes if any(classes) else ()
    codes.condition = ()
    if (make := configs.make_condition(config)) is not None:
        try:
            modality = tokenizer.modality
            zeros = np.zeros(tokenizer.spec.shape, tokenizer.spec.dtype)
            worse = modality.from_raw(make(modality.to_raw(zeros), None))
            if tokenizer.strides is None and worse.shape != tokenizer.spec.shape:
                raise ValueError(f"it takes {noun}s of shape {tokenizer.spec.shape} only")
            shape = jax.ShapeDtypeStruct((1, *worse.shape), tokenizer.spec.dtype)
            encoded = jax.eval_shape(tokenizer.encode_unchecked, shape)
            codes.condition = encoded.shape[1 : 1 + len(spec.grid)]
        except (ValueError, TypeError) as e:
            raise UserError(
                f"condition {config.condition.name}: the tokenizer cannot encode it: {first_line(e)}"
            ) from e


def _config_before(config: ConfigDict, workdir: Path) -> ConfigDict | None:
    """The config of the run in `workdir`, or of `config.start_from`; None if there is neither."""
    folder = workdir
    if not has_checkpoints(workdir):
        if not config.start_from:
            return None
        folder = find(config.start_from)
    before = configs.load(folder / configs.FILE)
    return before if configs.kind_of(before) == "prior" else None


def _initial_params(
    config: ConfigDict, workdir: Path, tokenizer: TrainedTokenizer, shapes: PriorState
) -> Any:
    """Reads the params that `config.start_from` names; {} if it names none, or the run has a checkpoint."""
    if not config.start_from or has_checkpoints(workdir):
        return {}
    _, params, fingerprint, _ = read_prior(config.start_from)
    params = jax.device_get(params)
    if bytes(np.asarray(fingerprint)) != tokenizer.fingerprint:
        stderr(
            f"start_from={config.start_from} was trained on the codes of another tokenizer: its weights help only "
            "if the codes are nearly the same"
        )
    if config.prior.get("scan"):
        params = stack(params, config.prior.layers)
    if lines := differences(flat(params), flat(shapes.prior.params)):
        raise UserError(
            f"start_from={config.start_from} does not fit this config:" + listing(lines)
        )
    return params


def prior_job(config: ConfigDict, workdir: Path, key: jax.Array) -> Job:
    """Makes the training run of a prior's config.

    It is one function because the parts of the job are closures over the tokenizer and the recipe.

    Args:
      config: checked; its `codes` are filled in.
      workdir: the run's folder.
      key: initialises the params.
    """
    parallel.check(config.parallel, config.data.batch_size)
    tokenizer = load_tokenizer_of(config.tokenizer, config.data)
    splits = modalities.open_source(config)
    from_codes = config.data.source == "codes"
    if from_codes:
        metadata = read_metadata(Path(config.data.folder))
        fingerprint = list(bytes.fromhex(metadata["fingerprint"]))
        check_fingerprint(tokenizer, fingerprint, config.data.folder)
    with config.unlocked():
        describe_codes(config, tokenizer, splits.class_names, _config_before(config, workdir))
    check_held_out(config, splits.val)  # fail early
    modality = tokenizer.modality
    recipe = make_prior_recipe(config, None if from_codes else tokenizer.module, tokenizer)
    own_fingerprint = np.frombuffer(tokenizer.fingerprint, np.uint8)
    variables = {} if from_codes else jax.device_get(tokenizer.variables)

    fresh = partial(init_prior_state, recipe)
    shapes = jax.eval_shape(fresh, key, own_fingerprint, variables)
    params = _initial_params(config, workdir, tokenizer, shapes)

    def init(key: jax.Array, fingerprint: Any, variables: Any, params: Any) -> PriorState:
        state = fresh(key, fingerprint, variables)
        if not params:
            return state
        copy = jax.tree.map(jnp.copy, params)
        return state.replace(prior=state.prior.replace(params=params, ema_params=copy))

    def make() -> PriorState:
        return parallel.make_state(init, key, own_fingerprint, variables, params, fsdp=config.fsdp)

    def model(state: PriorState) -> TrainedPrior | None:
        params = parallel.fetch(state.prior.ema_params)
        if jax.process_index():
            return None
        params = jax.device_put(params, jax.local_devices()[0])
        return TrainedPrior(config, tokenizer, recipe.prior, params, int(state.step))

    return Job(
        config=config,
        workdir=workdir,
        phases=[Phase("prior", config.phases.prior, 0)],
        splits=splits,
        batches=lambda: training_batches(config, splits.train),
        init=make,
        step=lambda phase: partial(prior_step, recipe=recipe),
        before_step=lambda state, step, key: state,
        networks=lambda state: {"prior": state.prior.params},
        watch=lambda state, warn: Watch(int(state.skipped)),
        model=model,
        check=lambda state: check_fingerprint(tokenizer, state.fingerprint, workdir),
        files={
            "nearest training examples": f"nearest{modality.preview_suffix}",
            "samples by class": f"samples{modality.preview_suffix}",
        }
        if config.condition.name == "none"
        else {"as given, improved, original": f"samples{modality.preview_suffix}"},
    )
