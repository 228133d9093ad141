"""Suggests what to declare in an archive's `ts_parity` section if a handler cannot be coded as it is.

Pure: the calls that one run made in, a declaration out. Knows calls and whether their outputs can be coded. Knows
nothing of how they were watched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ts_parity.worker.stand_in import CALL

_PREPARING = ("transform", "inverse_transform", "preprocess", "postprocess", "tokenize", "normalize", "to", "numpy")
"""Methods that make inputs or answers, not predictions, though they may return floating numbers."""
_EMBEDDING = ("transform",)
"""Of these, methods that may return a prediction if a model has them: distances to centres, say."""
_PLUMBING = ("parameters", "buffers", "modules", "children", "state_dict", "eval", "train", "apply")
_FLAGS = {"model": "--model", "call": "--call", "input": "--model-input", "output": "--model-output"}


@dataclass(frozen=True)
class ObservedCall:
    """A call by user code: of which object, by which method, and why its output cannot be coded, if it cannot.

    `parts`: the places of the output's floating parts, if there are several.
    """

    site: str
    method: str
    why: str = ""
    parts: tuple[str, ...] = ()

    @property
    def coded(self) -> bool:
        return not self.why or bool(self.parts)


Declaration = dict[str, str]
"""What to declare: model, call, input, output."""


def suggestion(**lines: str) -> str:
    """The suggestion as a sentence: the lines to write, such as `call: encode`, and where."""
    if (place := lines.get("output", "")).replace(".", "").isdigit() and "." in place:
        lines["output"] = repr(place)  # quoted, so that YAML reads it as text
    written = [f"`{key}: {value}`" for key, value in lines.items()]
    flags = " ".join(f"{_FLAGS[key]} {value}" for key, value in lines.items())
    return f"write {' and '.join(written)} in the archive's ts_parity section (package or train {flags})"


def for_several_calls(calls: Sequence[ObservedCall], observed: Sequence[ObservedCall]) -> Declaration:
    """Which of several calls to declare as the model call: that of a helper that makes them all, as an ensemble does;
    else the last one that is made once and can be coded.
    """

    def makes_all(each: ObservedCall) -> bool:
        return all(call.site.startswith((f"{each.site}.", f"{each.site}[")) for call in calls)

    if lines := for_other_calls([each for each in observed if makes_all(each)], ()):
        return lines
    names = [(call.site, call.method) for call in calls]
    for call in reversed(calls):
        if call.coded and names.count((call.site, call.method)) == 1:
            others = [other for other in calls if other is not call]
            lines = {}
            if any(other.site != call.site for other in others):
                lines["model"] = declarable(call.site)
            if any(other.site == call.site for other in others):
                lines["call"] = call.method
            return lines | for_parts(call.parts)
    return {}


def for_other_calls(observed: Sequence[ObservedCall], watched: Sequence[str]) -> Declaration:
    """What to declare if no model call was seen: another method or part of the model, or another object of the handler.

    `watched`: the sites where the search finds models without a declaration.
    """
    able = [each for each in observed if each.coded and each.method not in _PREPARING]
    able = able or [each for each in observed if each.coded and each.method in _EMBEDDING and each.site in watched]
    for each in reversed(able):
        lines = {}
        if [each.site] != list(dict.fromkeys(watched)):
            lines["model"] = declarable(each.site)
        if each.method not in (CALL, "forward"):
            lines["call"] = each.method
        return lines | for_parts(each.parts)
    return {}


def for_parts(parts: Sequence[str]) -> Declaration:
    """Declare the first of these parts of the output."""
    return {"output": parts[0]} if parts else {}


def called_instead(observed: Sequence[ObservedCall], watched: Sequence[str]) -> str:
    """Which other method of the model was called, and why its output cannot be coded."""
    for each in reversed(observed):
        plumbing = each.method in (*_PREPARING, *_PLUMBING) or each.method.startswith(("get_", "named_"))
        if each.site in watched and each.why and not plumbing:
            return f"the handler calls {each.site}.{each.method}, and {each.why}"
    return ""


def declarable(path: str) -> str:
    """The path of a site in the form of a declaration: self.parts['en'][0].net becomes parts.en.0.net."""
    return re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", path).removeprefix("self.")
