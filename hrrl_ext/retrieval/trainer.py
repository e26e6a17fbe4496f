"""Joint embeddings from pairs to a model that searches, in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .._modes import evaluating
from .._pixels import PixelCheck
from ..clustering import DiscoveredConcepts
from ..clustering.discovered import read_concepts
from ..data import Augmentation
from ..data.image_sets import ImageSet, as_float
from ..data.resize import size_of
from ..data.unreadable import OnError
from ..perturbation import FP16_LOSS_SCALE
from ..pretrained import described_in
from ..processes import start_processes
from ..training import Loop
from ..training.face import Trainer
from ..training.loggers import Loggers, asked_for
from ..training.opening import check_init, fill, open_reading, open_run, place, told_channels
from ..training.progress import ProgressStyle
from .batches import EncodedPairs, PairBatches
from .concept_level import ConceptLevel, names_of_images, open_level, readable
from .config import RetrievalConfig, RetrievalTraining, configs
from .measures import Ids
from .model import JointEmbedding
from .pairs import Pairs, Source, load_pairs
from .presets import Preset
from .recipe import VSE
from .saved import FEATURES, HF, build_joint_embedding, load_words
from .words import Vocabulary, Words

_OF_MODEL = ("dim", "similarity", "normalise_image", "normalise_caption", "absolute", "freeze")


class RetrievalTrainer(Trainer):
    """Learns a joint embedding of images and captions (Faghri et al., 2018).

    ::

        result = RetrievalTrainer(data="pairs.csv", validation="pairs.csv", out="runs/vse").fit()
        image, caption = result.model.encode_image(x), result.model.encode_captions(["a red fruit"])

    Args:
        model: the image encoder, by a name that :func:`hrrl_ext.models.build_model` knows, or any module
            from images [B, 3, H, W] in [0, 1], or from what data have in their place, to features
            [B, ``num_features``], trained in place; or a whole :class:`JointEmbedding` with its words, to
            which ``text`` and sizes are not given. Where data are features, a name has no meaning.
        text: "gru"; "huggingface:FOLDER", a trained text model; or any module from tokens and lengths to
            [B, ``num_features``].
        data: pairs to train on; whatever :func:`load_pairs` opens. All captions of an image, and all of
            a group, are no negatives of each other.
        validation: pairs to measure recall on after each epoch; a source is opened with split="val".
        validation_concepts: the concept of each validation image, a number or a name, to measure the rsum
            of each; or "classes", those that the images have, as the emoji do.
        concepts: the concept of each training image, in the same way; that of a pair is its image's. Or
            "clusters:K", or :class:`hrrl_ext.DiscoveredConcepts`: clusters of the pairs' gradients, found
            while it trains; those of one image may be in several. With ``lam`` an adversary weights them
            (HRRL, Eq. 4); ``lam=None`` reports their losses.
        preset: "VSE++", "VSE0", "Order++" or "Order0": sets those of loss, similarity, margin,
            normalise_image, normalise_caption, absolute and lr that are not given.
        out: folder of the run; None saves nothing. Its ``best`` is the epoch of the largest rsum.
        resume: continue the run in ``out`` from its last checkpoint, to the same bits as if it had never
            stopped. Without it a folder that holds a run is refused.
        init: the model of another run (its folder, for the last state, or ``best`` in it) that a new one
            begins with, its words too, such as one of a frozen image encoder that is now fine-tuned. A
            warning names what did not match.
        init_part: which of several networks in the file of ``init``, such as "encoder_k" (``part`` of
            :func:`hrrl_ext.pretrained.load_weights`).
        checkpoint_every: save every so many steps, besides at the end of each epoch.
        max_minutes: stop after so long, saved so that it can be resumed.
        root: where the images of a file of pairs lie, if not beside it.
        device: "auto" is CUDA where there is one.
        num_workers: processes that decode images from files.
        keep_gib: images of up to so many GiB are decoded once and kept.
        on_error: "raise" or "skip": images that cannot be read, as for :class:`hrrl_ext.HRRLTrainer`;
            their captions stay out with them.
        progress: "auto", "bar", "plain" or "off".
        tensorboard: short for loggers=["tensorboard"].
        loggers: what is told each epoch's numbers too: "tensorboard", "mlflow", "wandb", or any
            :class:`hrrl_ext.training.RunLogger`.
        after_step: called with the trainer and the number of steps done, after each of them and before a
            checkpoint of it, in every process.
        **config: the fields of :class:`RetrievalConfig` (loss, margin, dim, freeze, ...) and of
            :class:`RetrievalTraining` (epochs, batch_size, optimizer, lr, ...).

    Deterministic given the seed and the number of threads. Bad arguments raise before any training.
    Embeddings that collapse to one point, or a loss that is not finite, stop the run at the next step
    that is looked at (the first ones, every 20th, the last of an epoch) and leave the last checkpoint;
    a collapse is named by the step at which it began. SIGTERM saves and exits with status 143.

    Under torchrun the processes share every batch and gather their negatives: ``batch_size`` counts the
    pairs of all of them, and every pair has as many negatives as on one process. Only batch normalisation
    sees its own part.
    """

    def __init__(
        self,
        model: str | nn.Module = "resnet18",
        *,
        data: Source,
        text: str | nn.Module = "gru",
        validation: Source | None = None,
        validation_concepts: Ids | None = None,
        concepts: Ids | DiscoveredConcepts | None = None,
        preset: str = "VSE++",
        out: str | os.PathLike[str] | None = None,
        resume: bool = False,
        init: str | os.PathLike[str] | None = None,
        init_part: str | None = None,
        checkpoint_every: int | None = None,
        max_minutes: float | None = None,
        root: str | None = None,
        device: str = "auto",
        num_workers: int = 0,
        keep_gib: float = 2.0,
        on_error: OnError = "raise",
        progress: ProgressStyle = "auto",
        tensorboard: bool = False,
        loggers: Loggers = (),
        after_step: Callable[[RetrievalTrainer, int], object] | None = None,
        **config: Any,
    ) -> None:
        _require_used(model, text, config)
        if isinstance(model, JointEmbedding):
            config = _of_model(model, config)
        training, method = configs(preset, config, "RetrievalTrainer")
        self.after_step = after_step
        processes, device_ = start_processes(device)
        run = open_run(out, resume, loggers := asked_for(loggers, tensorboard), processes)
        check_init(init, init_part, resume)
        if training.patience is not None and validation is None:
            raise ValueError("patience needs validation: without, no evaluation is better or worse")
        opened, measured = _open_pairs(data, validation, method, root)
        reading = open_reading(on_error, run if resume else None, num_workers, processes)
        pairs, given = readable(opened, read_concepts(concepts), reading)
        if measured is not None:
            asked = validation_concepts
            measured, validation_concepts = readable(measured, asked, reading, "validation")
        level = open_level(pairs, given, method, device_)
        self.model = _built(model, text, pairs, method, training.seed, out if resume else init)
        if init is not None:
            fill(self.model, init, init_part)
        place(self.model, device_, processes)
        if training.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        options: dict[str, Any] = {"device": device_, "processes": processes}
        options |= {"num_workers": num_workers, "keep_gib": keep_gib}
        known = (of for of in (pairs, measured) if of is not None)
        train, *val = (_encoded(self.model, of, **options) for of in known)
        _check_model(self.model, train)
        self.recipe = VSE(
            self.model,
            _batches(train, training, method, level),
            val[0] if val else None,
            method,
            processes,
            batch_size=training.batch_size,
            concepts=names_of_images(measured, validation_concepts),
            level=level,
            found=given if isinstance(given, DiscoveredConcepts) else None,
            loss_scale=FP16_LOSS_SCALE if training.precision == "fp16" else 1.0,
        )
        self.loop = Loop(
            self.recipe,
            training,
            processes=processes,
            device=device_,
            run=run,
            resume=resume,
            checkpoint_every=checkpoint_every,
            max_minutes=max_minutes,
            progress=progress,
            loggers=loggers,
            after_step=self._after_step,
            keep_start=init is not None or any(isinstance(m, nn.Module) for m in (model, text)),
        )
        if self.model.frozen:  # by now with the weights that a run goes on with
            for of in (train, *val):
                of.compute_features(self.model, training.batch_size)

    def train_step(self, *batch: Tensor, pairs: int | None = None) -> Tensor:
        """One step on a batch that ``batches`` yields, this process's part of ``pairs`` (all of it, if
        not given); returns the mean loss of a pair. Never waits for the device."""
        return self.recipe.step(batch, self.loop.move.of(len(batch[0]) if pairs is None else pairs))

    # --- what a loop of one's own, or a look at a run needs

    @property
    def batches(self) -> PairBatches:
        return self.recipe.batches


def _require_used(model: str | nn.Module, text: str | nn.Module, config: Mapping[str, Any]) -> None:
    """That no setting is given which would change nothing, and stand in the run's config.json."""
    names, why = ["word_dim", "text_width", "min_count"], ""
    if isinstance(model, JointEmbedding):
        if text != "gru":
            raise ValueError(
                f"text={text!r} is not used, as model has a text encoder; leave it out"
            )
        names, why = [*names, "width"], "model is built already"
    elif isinstance(text, nn.Module):
        names, why = names[:2], "text is a module"
    elif text.startswith(f"{HF}:"):
        why = f"{text} has words and sizes of its own"
    defaults = RetrievalConfig()
    for name in names if why else ():
        default = getattr(defaults, name)
        if config.get(name, default) != default:
            raise ValueError(f"{name}={config[name]!r} is not used, as {why}; leave it out")


def _of_model(model: JointEmbedding, config: dict[str, Any]) -> dict[str, Any]:
    """Settings, with those that a model of the user's has already."""
    if model.words is None:
        raise ValueError("model has no words; build it with words=Words.of(training captions)")
    own = {name: value for name, value in model.settings().items() if name in _OF_MODEL}
    for name, value in own.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} is {value!r} in model, got {config[name]!r}; leave it out")
    return own | config


def _open_pairs(
    data: Source, validation: Source | None, config: RetrievalConfig, root: str | None
) -> tuple[Pairs, Pairs | None]:
    pairs = load_pairs(data, split="train", image_size=config.image_size, root=root)
    if len(pairs.image_group.unique()) < 2:
        raise ValueError(
            f"data: {pairs} are all of one group, and items of one group are no negatives of each other; "
            "give pairs of several"
        )
    if config.queue is not None and config.queue > len(pairs):
        raise ValueError(
            f"queue={config.queue} is more than the {len(pairs)} pairs of an epoch: what is beyond is "
            "older copies of the same pairs; give at most as many"
        )
    if config.augmented and not isinstance(pairs.images, ImageSet):
        raise ValueError(
            "crop_padding and flip are of images, and data are features; leave both out"
        )
    if validation is None:
        return pairs, None
    measured = load_pairs(validation, split="val", image_size=config.image_size, root=root)
    shapes = [
        list(of.images.image_shape if isinstance(of.images, ImageSet) else of.images.shape[1:])
        for of in (pairs, measured)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"validation: {measured} has images, or features, of {shapes[1]}, and data of {shapes[0]}; "
            "give image_size, or features of one encoder"
        )
    return pairs, measured


def _built(
    model: str | nn.Module,
    text: str | nn.Module,
    pairs: Pairs,
    config: RetrievalConfig,
    seed: int,
    begun: str | os.PathLike[str] | None,
) -> JointEmbedding:
    """A fresh model, by the seed alone, or that of the user."""
    if isinstance(model, JointEmbedding):
        if lacking := config.learned.keys() - model.learned.keys():
            raise ValueError(
                f"loss={config.loss!r} learns {', '.join(sorted(lacking))}, which model has not; "
                f"build it with learned={config.learned}"
            )
        return model
    images, features = pairs.images, None
    if isinstance(model, str) and not isinstance(images, ImageSet):
        if images.ndim != 2:
            raise ValueError(f"data: features must be [N, F], got {list(images.shape)}")
        model, features = FEATURES, images.shape[1]
    published = Preset(
        "hardest",
        config.similarity,
        normalise_image=config.normalise_image,
        normalise_caption=config.normalise_caption,
        absolute=config.absolute,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_joint_embedding(
            model,
            _words(pairs, text, config, begun),
            text=text,
            image_size=size_of(images.image_shape) if isinstance(images, ImageSet) else None,
            width=config.width,
            channels=images.image_shape[0] if isinstance(images, ImageSet) else 3,
            features=features,
            word_dim=config.word_dim,
            text_width=config.text_width,
            dim=config.dim,
            preset=published,
            freeze=config.freeze,
            learned=config.learned,
        )


def _words(
    pairs: Pairs,
    text: str | nn.Module,
    config: RetrievalConfig,
    begun: str | os.PathLike[str] | None,
) -> Vocabulary | None:
    """Those that a run or a model has begun with, or of the training captions; None where ``text`` has
    its own."""
    if isinstance(text, str) and text.startswith(f"{HF}:"):
        return None
    if begun is not None and (file := described_in(begun) / "tokenizer.json").is_file():
        return load_words(file)
    return Words.of(pairs.captions, min_count=config.min_count)


def _encoded(model: JointEmbedding, pairs: Pairs, **options: Any) -> EncodedPairs:
    assert model.words is not None
    texts = model.words.encode(pairs.captions)
    return EncodedPairs(pairs, texts, precomputed=model.precomputed(pairs.images), **options)


def _batches(
    train: EncodedPairs,
    training: RetrievalTraining,
    method: RetrievalConfig,
    level: ConceptLevel | None,
) -> PairBatches:
    """With what the players, and a queue, need of each pair."""
    more = [train.pairs.owner] if method.tau > 0 else []
    more += [] if method.queue is None else [torch.arange(len(train.pairs))]
    augment = Augmentation(method.crop_padding, method.flip) if method.augmented else None
    options: dict[str, Any] = {"seed": training.seed, "augment": augment, "more": more}
    concept = None if level is None else level.concept
    return PairBatches(train, training.batch_size, concept=concept, **options)


def _check_model(model: JointEmbedding, encoded: EncodedPairs) -> None:
    """One forward pass of one pair, so that a misfit shows before any work."""
    row, images = torch.zeros(1, dtype=torch.int64), encoded.pairs.images
    told = told_channels(model, images) if isinstance(images, ImageSet) else nullcontext()
    with evaluating(model), told:
        (x,) = encoded.images([encoded.pairs.owner[row]])
        x = as_float(PixelCheck(model, "images", trained=True)(x))
        try:
            model(x, *encoded.captions(row), precomputed=encoded.precomputed)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the model fails on a pair of {encoded.pairs.name}: {error}; give an image encoder for "
                + (
                    f"images {list(x.shape[1:])}, or the size it is for by image_size"
                    if isinstance(images, ImageSet)
                    else f"features {list(x.shape[1:])}, or nn.Identity() for those that it made itself"
                )
            ) from error
