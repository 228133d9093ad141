"""Multiplications, as torch's own counter finds them in the operators that ran, and in those that it does not know.

Looking up an id takes none. Knows torch's operators. Knows nothing of what is counted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """-> a counter of floating operations, two for each multiplication.

    Fused operators hide what they do: attention and recurrent layers run in their parts while it lasts.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            # Without an Intel GPU torch warns of it whenever a flag of oneDNN is set, whichever it is.
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
            with (
                torch.backends.mkldnn.flags(enabled=False),
                torch.backends.cudnn.flags(enabled=False),
                FlopCounterMode(display=False, custom_mapping=_MORE) as counter,
            ):
                yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _fused_attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Four projections and the attention between them. A trace made by its user may hold it."""
    (batch, asks, size), (_, answers, _) = query, key
    return int(2 * batch * size * (2 * asks * size + 2 * answers * size + 2 * asks * answers))


def _fused_layer(source: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Attention and two layers. Of its arguments, only weights have two axes."""
    batch, length, _ = source
    matrices = [arg for arg in args if isinstance(arg, (tuple, list, torch.Size)) and len(arg) == 2]
    own = sum(rows * columns for rows, columns in matrices)
    return int(2 * batch * length * (own + 2 * length * source[-1]))


def _matrix_by_vector(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(2 * max(math.prod(arg) for arg in args if isinstance(arg, (tuple, list, torch.Size))))


_MORE = {
    torch.ops.aten.mv: _matrix_by_vector,
    torch.ops.aten.addmv: _matrix_by_vector,
    torch.ops.aten.dot: _matrix_by_vector,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._native_multi_head_attention: _fused_attention,
    torch.ops.aten._transformer_encoder_layer_fwd: _fused_layer,
}
