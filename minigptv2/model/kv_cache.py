"""A key-value cache with room for tokens to come: a new token is written after the others.

Transformers' own cache copies all keys and values for every token.

Shapes: B rows, H heads of width D, L tokens so far.
"""

import torch
from transformers.cache_utils import Cache, DynamicLayer

CHUNK = 64  # tokens by which a full buffer grows


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values, [B, H, L, D] each: views of the first L tokens of longer buffers."""

    _buffers: tuple[torch.Tensor, ...] | None = None  # [B, H, L + room, D] each

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append keys and values [B, H, T, D] of T new tokens. Returns all, [B, H, L + T, D] each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < after:
            size = (*key_states.shape[:2], after + CHUNK, key_states.shape[3])
            larger = tuple(new.new_empty(size) for new in (key_states, value_states))
            if before:
                for buffer, old in zip(larger, (self.keys, self.values)):
                    buffer[:, :, :before] = old
            self._buffers = larger
        for buffer, new in zip(self._buffers, (key_states, value_states)):
            buffer[:, :, before:after] = new
        self.keys, self.values = (buffer[:, :, :after] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be repeated."""
        super().batch_select_indices(indices)
        self._buffers = None  # keys and values are copies now, not views


def new_cache() -> Cache:
    """An empty cache for a language model; its layers are made as they are used."""
    return Cache(layer_class_to_replicate=PreallocatedLayer)
