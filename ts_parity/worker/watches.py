"""What a stand-in does with a call of the model: record it, end the run there, or answer in the model's place.

One watch sees one run of the user's entry point. Knows outputs; knows nothing of where the model object is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ts_parity.errors import NotCodable
from ts_parity.wire import Array
from ts_parity.worker.outputs import Container, take
from ts_parity.worker.standin import CALL, Watch


class ModelReached(BaseException):
    """Ends a run at the model call. Not an Exception: user code's `except Exception` must not swallow it."""


class _CannotAnswer(RuntimeError):
    """Raised into user code when no output can be given to it. What is reported is the watch's refusal."""


@dataclass(frozen=True)
class ModelCall:
    """One call of the model by user code: at which site, by which method, with what."""

    site: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return self.site if self.method == CALL else f"{self.site}.{self.method}"


class Watching:
    """Counts the model calls of one run; `called` is what distinguishes the watches."""

    def __init__(self) -> None:
        self.calls: list[ModelCall] = []

    def at(self, path: str, model: Any) -> Watch:
        return _AtSite(self, path, model)

    def read(self, path: str, model: Any, name: str, value: Any) -> None:
        """User code has read an attribute of the model."""

    def called(self, call: ModelCall, run: Callable[..., Any]) -> Any:
        raise NotImplementedError

    def several(self) -> NotCodable:
        where = ", ".join(sorted({call.name for call in self.calls}))
        return NotCodable(
            f"the model was called {len(self.calls)} times in one request ({where}); a code needs exactly one call"
        )


@dataclass(frozen=True)
class _AtSite:
    """What a watch hears of one model object."""

    watching: Watching
    path: str
    model: Any

    def called(self, method: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.watching.called(ModelCall(self.path, method, args, kwargs), run)

    def read(self, name: str, value: Any) -> None:
        self.watching.read(self.path, self.model, name, value)


class Recording(Watching):
    """Let the model compute and take its output."""

    def __init__(self, keep_inputs: bool) -> None:
        super().__init__()
        self.container: Container | None = None
        self._keep_inputs = keep_inputs
        self._raw: Array | None = None
        self._refusal: str | None = None

    def called(self, call: ModelCall, run: Callable[..., Any]) -> Any:
        self.calls.append(_detached(call) if self._keep_inputs else call)
        output = run(*call.args, **call.kwargs)
        try:
            # At once: user code may change the output in place.
            self._raw, self.container = take(output)
        except NotCodable as refusal:
            self._refusal = str(refusal)
        return output

    def read(self, path: str, model: Any, name: str, value: Any) -> None:
        """What the model has left behind is not in its output: an answer made from an output alone would lack it."""
        if self.calls and not self._refusal and _is_left_behind(value, model):
            self._refusal = (
                f"the handler takes more from its model than the output ({path}.{name}, read after the call), so an "
                "answer cannot be made from an output alone"
            )

    def verdict(self, existed: bool) -> tuple[Array | None, str | None]:
        """-> (raw output, None) or (None, why there is none)."""
        if len(self.calls) > 1:
            return None, str(self.several())
        if not self.calls:
            missing = "the model was not reached" if existed else "no model object was found before the request"
            return None, f"{missing}; if this is always so, declare where it is with model:"
        if self._raw is None or self._refusal:
            return None, self._refusal or "the model raised an exception"
        return self._raw, None


class Stopping(Watching):
    """Take the model's inputs and end the run."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = ""

    def called(self, call: ModelCall, run: Callable[..., Any]) -> Any:
        self.calls.append(_detached(call))
        raise ModelReached

    def ended_with(self, answer: Any) -> None:
        self._ended = f"; the handler answered {str(answer)[:200]!r}"

    def only_call(self) -> ModelCall:
        if len(self.calls) == 1:
            return self.calls[0]
        raise self.several() if self.calls else NotCodable(f"the model was not reached{self._ended}")


class Giving(Watching):
    """Answer with a raw output from elsewhere, in the container that the model would have used.

    `raw_of`: the output for this call, known beforehand or computed by another model.
    """

    def __init__(self, raw_of: Callable[[ModelCall], Array], container: Container | None) -> None:
        super().__init__()
        self.container = container
        self.refusal: NotCodable | None = None
        self._raw_of = raw_of

    def called(self, call: ModelCall, run: Callable[..., Any]) -> Any:
        self.calls.append(call)
        try:
            if len(self.calls) > 1:
                raise self.several()
            if self.container is None:
                _, self.container = take(run(*call.args, **call.kwargs))
            return self.container.rebuild(self._raw_of(call))
        except NotCodable as refusal:
            self.refusal = refusal
            raise _CannotAnswer(str(refusal)) from refusal


def _is_left_behind(value: Any, model: Any) -> bool:
    """A tensor, or a container of some, that is none of the model's weights."""
    if type(value) in (list, tuple):
        return any(_is_left_behind(child, model) for child in value)
    if type(value) is dict:
        return any(_is_left_behind(child, model) for child in value.values())
    if not isinstance(value, torch.Tensor) or isinstance(value, torch.nn.Parameter):
        return False
    own = (*model.parameters(), *model.buffers()) if isinstance(model, torch.nn.Module) else ()
    return not any(buffer.data_ptr() == value.data_ptr() for buffer in own)


def copied(value: Any) -> Any:
    """A copy of tensors, arrays, bytes and the plain containers around them; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, bytearray):
        return bytearray(value)
    if type(value) in (list, tuple):
        return type(value)(copied(child) for child in value)
    if isinstance(value, MutableMapping):
        other = copy.copy(value)
        other.update({name: copied(child) for name, child in value.items()})
        return other
    return value


def _detached(call: ModelCall) -> ModelCall:
    """With copied inputs: user code may fill the same buffer again for its next request."""
    # Outside inference mode, because training needs ordinary tensors.
    with torch.inference_mode(False), torch.no_grad():
        return ModelCall(call.site, call.method, copied(call.args), copied(call.kwargs))
