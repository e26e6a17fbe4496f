"""From words to ψ(c) [B, num_features], the state that a caption leaves (thesis, Eq. 3.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence


class GRUEncoder(nn.Module):
    """A GRU over word vectors; ψ(c) is its state at the caption's last word.

    Args:
        words: numbers there are, that of padding (0) among them; ``len(Words)``.
        word_dim: of a word's vector.
        width: of the state.
    """

    def __init__(self, words: int, *, word_dim: int = 300, width: int = 1024) -> None:
        super().__init__()
        if min(words, word_dim, width) < 1:
            raise ValueError(
                "GRUEncoder: words, word_dim and width must be at least 1, "
                f"got {words}, {word_dim} and {width}"
            )
        self.num_features = width
        self._sizes = {"words": words, "word_dim": word_dim, "width": width}
        self.embed = nn.Embedding(words, word_dim)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)  # as in the public code
        self.gru = nn.GRU(word_dim, width, batch_first=True)

    def description(self) -> dict[str, Any]:
        """For the file of a model: how it is built again."""
        return {"name": "gru", **self._sizes}

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens [B, L] int64 and lengths [B], from 1 to L; what stands behind a length has no effect.

        ``lengths`` on the CPU spare a GPU from being waited for.
        """
        x = self.embed(tokens)
        if torch.compiler.is_exporting():
            return self._scan(x, lengths)
        if len(tokens) == 0:
            return x.new_zeros(0, self.num_features)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed)
        return last[0]

    def _scan(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The same, word by word: torch.export would unroll nn.GRU to one length for ever.

        scan is a prototype of torch's; tests compare what is exported with the GRU.
        """
        from torch._higher_order_ops.scan import scan

        of_input, weight, input_bias, bias = self.gru.all_weights[0]
        of_words = F.linear(x, of_input, input_bias).transpose(0, 1)

        def step(h: Tensor, word: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            of_word, place = word
            r, z, n = of_word.chunk(3, 1)
            h_r, h_z, h_n = F.linear(h, weight, bias).chunk(3, 1)
            z = torch.sigmoid(z + h_z)
            new = torch.tanh(n + torch.sigmoid(r + h_r) * h_n)
            new = torch.where((place < lengths)[:, None], new + z * (h - new), h)
            return new, new.new_zeros(0)  # scan wants an output of each step: an empty one

        start = x.new_zeros(x.shape[0], self.num_features)
        places = torch.arange(x.shape[1], device=x.device)
        last, _ = scan(step, start, (of_words, places))
        return last
