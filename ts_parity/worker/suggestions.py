"""The line to write into an archive's `ts_parity` section where a handler cannot be coded as it is, found by looking.

Pure: what one run showed in, a line out. Knows calls and their outcome; knows nothing of how they were watched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ts_parity.worker.stand_in import CALL

_PREPARING = ("transform", "inverse_transform", "preprocess", "postprocess", "tokenize", "normalize", "to", "numpy")
"""Methods that make inputs or answers and no predictions, though they may return floating numbers."""
_EMBEDDING = ("transform",)
"""Of these, what may be a prediction all the same, if a model makes it: distances to centres, say."""
_PLUMBING = ("parameters", "buffers", "modules", "children", "state_dict", "eval", "train", "apply")
_FLAGS = {"model": "--model", "call": "--call", "input": "--model-input", "output": "--model-output"}


@dataclass(frozen=True)
class ObservedCall:
    """A call that user code made: of which object, by which method, and why its output cannot be coded, if it cannot.

    `parts`: the places of its floating parts, where it has several.
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
    """The lines, and where they go: `call: encode`."""
    if (place := lines.get("output", "")).replace(".", "").isdigit() and "." in place:
        lines["output"] = repr(place)  # as YAML takes it for a text
    told = [f"`{key}: {value}`" for key, value in lines.items()]
    flags = " ".join(f"{_FLAGS[key]} {value}" for key, value in lines.items())
    return f"write {' and '.join(told)} in the archive's ts_parity section (package or train {flags})"


def for_several_calls(calls: Sequence[ObservedCall], looked: Sequence[ObservedCall]) -> Declaration:
    """What can be declared to be the one call: that of a helper which makes them all, as a committee does; else the
    last of them that is made once and can be coded.
    """

    def makes_all(each: ObservedCall) -> bool:
        return all(call.site.startswith((f"{each.site}.", f"{each.site}[")) for call in calls)

    if lines := for_other_calls([each for each in looked if makes_all(each)], ()):
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


def for_other_calls(looked: Sequence[ObservedCall], watched: Sequence[str]) -> Declaration:
    """What was called in place of a model: another method of it, a part of it, or another object of the handler.

    `watched`: where a model is looked for without a declaration.
    """
    able = [each for each in looked if each.coded and each.method not in _PREPARING]
    able = able or [each for each in looked if each.coded and each.method in _EMBEDDING and each.site in watched]
    for each in reversed(able):
        lines = {}
        if [each.site] != list(dict.fromkeys(watched)):
            lines["model"] = declarable(each.site)
        if each.method not in (CALL, "forward"):
            lines["call"] = each.method
        return lines | for_parts(each.parts)
    return {}


def for_parts(parts: Sequence[str]) -> Declaration:
    """The first of these parts of the output is the one."""
    return {"output": parts[0]} if parts else {}


def called_instead(looked: Sequence[ObservedCall], watched: Sequence[str]) -> str:
    """What the model was called for in place of a call that could be coded, and why that cannot be."""
    for each in reversed(looked):
        plumbing = each.method in (*_PREPARING, *_PLUMBING) or each.method.startswith(("get_", "named_"))
        if each.site in watched and each.why and not plumbing:
            return f"the handler calls {each.site}.{each.method}, and {each.why}"
    return ""


def declarable(path: str) -> str:
    """The path of a site as a declaration has it: self.parts['en'][0].net is parts.en.0.net."""
    return re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", path).removeprefix("self.")
