"""From words to ψ(c) [B, num_features], the state that a caption leaves (thesis, Eq. 3.2)."""

from __future__ import annotations

import torch
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
        self.embed = nn.Embedding(words, word_dim)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)  # as in the public code
        self.gru = nn.GRU(word_dim, width, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens [B, L] int64 and lengths [B], from 1 to L; what stands behind a length has no effect.

        ``lengths`` on the CPU spare a GPU from being waited for.
        """
        x = self.embed(tokens)
        if torch.compiler.is_compiling():  # also in torch.export, which cannot pack
            states, _ = self.gru(x)
            last = (lengths - 1)[:, None, None].expand(-1, 1, self.num_features)
            return states.gather(1, last.to(states.device))[:, 0]
        if len(tokens) == 0:
            return x.new_zeros(0, self.num_features)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed)
        return last[0]
