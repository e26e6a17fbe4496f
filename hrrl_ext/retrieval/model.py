"""Images and captions in one space (thesis, Eq. 3.1 to 3.3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._arrays import unit_rows, wide
from ..models import ConvNet, ResNet18
from ..ops import Similarity
from ..spec import not_known
from .presets import PRESETS, Preset, as_compared
from .ranks import embedded, scores
from .words import Vocabulary


class JointEmbedding(nn.Module):
    """f(i) = W_f φ(i) + b_f and g(c) = W_g ψ(c) + b_g, as they are compared.

    Features φ(i) are brought to norm 1 here and nowhere else, whether the encoder computes them or they
    were computed before, and so are the embeddings. A row of zeros stays one. Embeddings are float32 or
    float64, also under autocast, which only the encoders and linear maps see.

    Args:
        image_encoder: from images [B, 3, H, W] in [0, 1] to φ [B, F]: a `ResNet18` or `ConvNet`, of which
            a copy without its last layer is taken; any other module as it is; ``nn.Identity()`` where
            φ was computed before.
        text_encoder: from tokens [B, L] int64, padded, and lengths [B] to ψ [B, W]: a `GRUEncoder`, or
            any module.
        dim: of the embeddings.
        similarity: "cosine", the product of embeddings, or "order".
        normalise_image, normalise_caption: to norm 1; VSE0 leaves the image's as it is.
        absolute: both with their absolute values (Order0).
        normalise_features: φ to norm 1.
        freeze: the image encoder is not trained: no gradient, and eval mode even in training.
        image_features, text_features: F and W, of an encoder without ``num_features``.
        learned: numbers that a loss learns beside the embeddings, by name, and how they begin.
        words: what makes tokens of captions, kept for :meth:`encode_captions` and saved beside the
            weights.
        built_as: model, image_size, width and, unless 3, channels of the image encoder, by which a file
            brings it back; `build_joint_embedding` gives it.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        dim: int = 1024,
        *,
        similarity: Similarity = "cosine",
        normalise_image: bool = True,
        normalise_caption: bool = True,
        absolute: bool = False,
        normalise_features: bool = True,
        freeze: bool = False,
        image_features: int | None = None,
        text_features: int | None = None,
        learned: Mapping[str, float] | None = None,
        words: Vocabulary | None = None,
        built_as: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if similarity not in ("cosine", "order"):
            raise ValueError(
                f"JointEmbedding: similarity {not_known(similarity, ('cosine', 'order'))}"
            )
        if dim < 1:
            raise ValueError(f"JointEmbedding: dim must be at least 1, got {dim}")
        ours = isinstance(image_encoder, ResNet18 | ConvNet)
        if ours and isinstance(image_encoder.fc, nn.Linear):  # it still has its last layer
            image_encoder = without_classifier(image_encoder)
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.project_image = _linear(image_encoder, image_features, dim, "image")
        self.project_text = _linear(text_encoder, text_features, dim, "text")
        self.dim = dim
        self.order = similarity == "order"
        self.normalise_image, self.normalise_caption = normalise_image, normalise_caption
        self.absolute, self.normalise_features = absolute, normalise_features
        self.learned = nn.ParameterDict(
            {
                name: nn.Parameter(torch.tensor(float(value)))
                for name, value in (learned or {}).items()
            }
        )
        self._learned = dict(learned or {})
        self.words = words
        self.built_as = dict(built_as or {})
        self.frozen = False
        if freeze:  # without it, parts that its owner froze stay so
            self.freeze()

    @classmethod
    def of_preset(
        cls,
        preset: str | Preset,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        dim: int = 1024,
        **options: Any,
    ) -> JointEmbedding:
        """With what one of `PRESETS` says of embeddings; ``options`` are the other arguments."""
        if isinstance(preset, str):
            if preset not in PRESETS:
                raise ValueError(f"JointEmbedding: preset {not_known(preset, PRESETS)}")
            preset = PRESETS[preset]
        return cls(
            image_encoder,
            text_encoder,
            dim,
            similarity=preset.similarity,
            normalise_image=preset.normalise_image,
            normalise_caption=preset.normalise_caption,
            absolute=preset.absolute,
            **options,
        )

    def freeze(self, frozen: bool = True) -> None:
        """Whether the image encoder stays as it is; fine-tuning goes on from ``freeze(False)``."""
        self.frozen = frozen
        self.image_encoder.requires_grad_(not frozen)
        self.image_encoder.train(self.training and not frozen)

    def train(self, mode: bool = True) -> JointEmbedding:
        super().train(mode)
        if self.frozen:
            self.image_encoder.eval()
        return self

    # --- embeddings

    def precomputed(self, images: object) -> bool:
        """Whether data are φ, computed before: rows of features, and a network by name takes images."""
        by_name = isinstance(self.built_as.get("model"), str)
        return by_name and isinstance(images, Tensor) and images.ndim == 2

    def features(self, images: Tensor) -> Tensor:
        """φ [B, F] as the encoder gives it: what may be computed once, where it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.image_encoder(images)
        if features.ndim != 2 or features.shape[1] != self.project_image.in_features:
            raise ValueError(
                f"JointEmbedding: the image encoder must give [B, {self.project_image.in_features}], "
                f"got {list(features.shape)} for images {list(images.shape)}"
            )
        return features

    def encode_image(self, images: Tensor, *, precomputed: bool = False) -> Tensor:
        """f [B, dim]. With ``precomputed`` images are what :meth:`features` gave, [B, F]."""
        features = images if precomputed else self.features(images)
        if self.normalise_features:
            features = unit_rows(wide(features)).to(features.dtype)
        return as_compared(self.project_image(features), self.normalise_image, self.absolute)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """g [B, dim] of captions as ``words.encode`` gives them."""
        return self.encode_state(self.text_encoder(tokens, lengths))

    def encode_state(self, state: Tensor) -> Tensor:
        """g [B, dim] of what the text encoder gave, ψ [B, W]."""
        return as_compared(self.project_text(state), self.normalise_caption, self.absolute)

    def forward(
        self, images: Tensor, tokens: Tensor, lengths: Tensor, *, precomputed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(f, g) as the losses take them."""
        image = self.encode_image(images, precomputed=precomputed)
        return image, self.encode_text(tokens, lengths)

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """g [B, dim] of texts, where the model has its words."""
        if self.words is None:
            raise ValueError("JointEmbedding: the model has no words; give encode_text tokens")
        tokens, lengths = self.words.encode(captions)
        return self.encode_text(tokens.to(self.project_text.weight.device), lengths)

    @property
    def compared(self) -> str:
        """The similarity of its embeddings, as `evaluate` and `Index` name it."""
        if self.order:
            return "order"
        return "cosine" if self.normalise_image and self.normalise_caption else "dot"

    @torch.no_grad()
    def similarity(self, image: Tensor, caption: Tensor) -> Tensor:
        """[N, M] of embeddings, without a gradient; the losses have ways of their own that keep less."""
        compared = self.compared
        return scores(embedded(image, compared), embedded(caption, compared), compared)

    # --- files

    def settings(self) -> dict[str, Any]:
        """Arguments that are plain values, by name."""
        return {
            "dim": self.dim,
            "similarity": "order" if self.order else "cosine",
            "normalise_image": self.normalise_image,
            "normalise_caption": self.normalise_caption,
            "absolute": self.absolute,
            "normalise_features": self.normalise_features,
            "freeze": self.frozen,
            "learned": self._learned,
        }

    def save_files(self, folder: Path) -> None:
        """The words, where `save_pretrained` writes the weights."""
        if self.words is not None:
            self.words.save(folder / "tokenizer.json")

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings().items())


def without_classifier(network: nn.Module) -> nn.Module:
    """A copy that gives what the last linear layer was given, with ``num_features``, its width."""
    network = copy.deepcopy(network)
    name, last = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    network.set_submodule(name, nn.Identity())
    network.num_features = last.in_features  # type: ignore[assignment]
    return network


def _linear(encoder: nn.Module, width: int | None, dim: int, what: str) -> nn.Linear:
    own = getattr(encoder, "num_features", None)
    if width is None:
        width = own
    if not isinstance(width, int):
        raise ValueError(
            f"JointEmbedding: how wide the features of the {what} encoder ({type(encoder).__name__}) "
            f"are is not known; give {what}_features=..."
        )
    linear = nn.Linear(width, dim)
    bound = math.sqrt(6 / (width + dim))
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)
    return linear
