"""A text model of Hugging Face's from a folder. Nothing is downloaded; no code of the folder is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._regular import regular
from ..spec import not_known
from ..storage import FilePath, replacing
from .words import padded

POOLS = ("mean", "cls")
_MAX_LENGTH = 128
_OF_THIS_MACHINE = ("_name_or_path", "transformers_version")


class TokenizerWords:
    """What ``tokenizers`` makes of texts, whatever it splits them into. Needs the extra ``text``.

    path: a tokenizer.json. max_length: tokens of a text that are read.
    """

    def __init__(self, path: FilePath, *, max_length: int | None = None) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError(
                f'{path} is read by tokenizers: pip install "hrrl_ext[text]"'
            ) from error
        path = Path(path)
        if not regular(path).is_file():
            raise FileNotFoundError(
                f"TokenizerWords: no file {path}; transformers writes it with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(f"TokenizerWords: {path} holds no tokenizer: {error}") from error
        if max_length is not None:
            self._tokenizer.enable_truncation(max_length)
        self._tokenizer.no_padding()

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As `Words.encode`; a text without a token is one token 0."""
        if isinstance(texts, str):
            raise TypeError("TokenizerWords.encode: texts must be a list of texts, got one text")
        found = self._tokenizer.encode_batch(list(texts))
        return padded([one.ids or [0] for one in found])

    def save(self, path: FilePath) -> None:
        with replacing(path) as partial:
            self._tokenizer.save(str(partial))


class HuggingFaceEncoder(nn.Module):
    """ψ(c) of a model of transformers: the mean over a caption's tokens, or the state of its first one.

    ``from_folder`` opens one that is trained. Its pooler, which nothing here reads, is left out.
    """

    def __init__(self, model: nn.Module, *, pool: str = "mean") -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"HuggingFaceEncoder: pool {not_known(pool, POOLS)}")
        config: Any = model.config
        width = getattr(config, "hidden_size", None)
        if not isinstance(width, int):
            raise ValueError(
                f"HuggingFaceEncoder: {type(model).__name__} is no text model: its configuration has "
                "no hidden_size"
            )
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # type: ignore[assignment]
        self.model, self.pool, self.num_features = model.float(), pool, width
        self.max_length = min(_MAX_LENGTH, getattr(config, "max_position_embeddings", _MAX_LENGTH))

    @classmethod
    def from_folder(cls, folder: FilePath, *, pool: str = "mean") -> HuggingFaceEncoder:
        """Its weights; ValueError where any of them is missing."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"HuggingFaceEncoder: {folder} must be a folder with config.json and weights, as "
                "save_pretrained of transformers writes it; nothing is downloaded"
            )
        model, found = _transformers().AutoModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        missing = [name for name in found["missing_keys"] if not name.startswith("pooler.")]
        if missing or found["mismatched_keys"]:
            raise ValueError(
                f"HuggingFaceEncoder: {folder} lacks weights of its {type(model).__name__}: "
                f"{', '.join(map(str, (missing or found['mismatched_keys'])[:3]))}"
            )
        return cls(model, pool=pool)

    @classmethod
    def of_config(cls, config: Mapping[str, Any], *, pool: str = "mean") -> HuggingFaceEncoder:
        """A fresh one, of what ``model.config.to_dict()`` said."""
        options = dict(config)
        library = _transformers()
        described = library.AutoConfig.for_model(options.pop("model_type"), **options)
        return cls(library.AutoModel.from_config(described), pool=pool)

    def description(self) -> dict[str, Any]:
        """For the file of a model: how it is built again."""
        config: Any = self.model.config
        options = {k: v for k, v in config.to_dict().items() if k not in _OF_THIS_MACHINE}
        return {"name": "huggingface", "pool": self.pool, "config": options}

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens [B, L] int64 and lengths [B]; what stands behind a length has no effect."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        mask = places < lengths.to(tokens.device)[:, None]
        states: Tensor = self.model(
            input_ids=tokens, attention_mask=mask.to(torch.int64)
        ).last_hidden_state
        if self.pool == "cls":
            return states[:, 0]
        weight = mask.to(states.dtype)[:, :, None]
        return (states * weight).sum(1) / weight.sum(1)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            'a text model of Hugging Face needs transformers: pip install "hrrl_ext[text]"'
        ) from error
    return transformers
