"""Wrapping: a user's .mar becomes one for the deployed or the parity role of a fleet.

A wrapped archive is the user's archive, every file of it byte for byte, with three things added: a shim as the
manifest's handler, this package's worker code as an importable zip, and a `ts_parity` section in the config YAML that
tells the shim what to do. So wrapping edits the zip: unpacking it and running torch-model-archiver again would drop
hidden files and forget what it does not know of the manifest.

Knows names, sections and bytes. Not what a handler does: whether a model can be coded shows when it is loaded.
"""

from __future__ import annotations

import contextlib
import email.message
import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import ts_parity
from ts_parity import output
from ts_parity.arguments import is_key
from ts_parity.codes import Family, RowErrors, make_code
from ts_parity.confidence import read_confidence
from ts_parity.describe import ProtectedModel
from ts_parity.errors import ArchiveError
from ts_parity.exclusion import Exclusions
from ts_parity.torchserve.mar import (
    MANIFEST,
    SECTION,
    Archive,
    open_zip,
    parse_config,
    read_archive,
)
from ts_parity.torchserve.weights import check_same_format, check_script

WORKER_ZIP = "ts_parity_worker.zip"
SHIMS = {"deployed": "ts_parity_deployed.py", "parity": "ts_parity_parity.py"}
SAMPLES = "ts_parity_samples"
PARITY_MODEL = "ts_parity_parity_model.pt"
CONFIG_FILE = "model-config.yaml"
STOCK_HANDLERS = (
    "base_handler",
    "image_classifier",
    "image_segmenter",
    "object_detector",
    "text_classifier",
    "dali_image_classifier",
    "vllm_handler",
    "trt_llm_handler",
)

_PREAMBLE = "# Added by ts_parity, which runs the handler named here behind its own. Everything else is as it was.\n"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")  # what torch-model-archiver allows
_DECLARABLE = ("model", "call", "input", "output")
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip knows: the same contents are the same bytes on every day
# What a worker needs of this package. torch and PyYAML it has from TorchServe, numpy from torch's users.
_WORKER_FILES = ("__init__.py", "errors.py", "wire.py", "codes.py", "exclusion.py", "confidence.py", "fingerprint.py")


@dataclass(frozen=True)
class SampleRequest:
    """A request body for the self-test at load, and the content type a client sends with it."""

    path: Path
    content_type: str | None = None


def wrap_deployed(
    archive: str | Path,
    out: str | Path,
    model_name: str | None = None,
    *,
    samples: Sequence[SampleRequest | str | Path] = (),
    secret: str | None = None,
    declaration: Mapping[str, str] | None = None,
    never_code: Exclusions | None = None,
    response_timeout_s: int | None = None,
    replace: bool = True,
) -> Path:
    """Wrap for the deployed role. -> the new archive: `out` if that ends in .mar, else a file in the folder `out`.
    Without `replace` a file that is there stays, and ConfigError is raised.

    `declaration` may say where the model object is (`model`), which method of it is the model call (`call`), which of
    its inputs (`input`) and which part of its output (`output`) is coded.
    `never_code`: which bodies are never coded.
    `response_timeout_s`: for an archive with a config YAML, and this one has one, TorchServe heeds the responseTimeout
    written there only, 120 s if none is: not the instance's default, nor what a registration says.
    """
    source = _wrappable(archive)
    section = _section("deployed", source, samples, secret, declaration, never_code)
    config = _config_text(source, section, response_timeout_s)
    return _write(source, out, model_name or source.model_name, section, config, samples, {}, replace)


def wrap_parity(
    archive: str | Path,
    out: str | Path,
    model_name: str | None = None,
    *,
    code: str,
    k: int,
    r: int = 1,
    row: int = 0,
    coefficients: Sequence[Sequence[float]] | None = None,
    partial: bool | None = None,
    serialized_file: str | Path | None = None,
    parity_model: str | Path | None = None,
    protects: ProtectedModel | None = None,
    cost: float | None = None,
    cost_on: str | None = None,
    agreement: float | None = None,
    tolerance: float | None = None,
    row_errors: RowErrors | None = None,
    confidence: Mapping[str, Any] | None = None,
    samples: Sequence[SampleRequest | str | Path] = (),
    secret: str | None = None,
    declaration: Mapping[str, str] | None = None,
    never_code: Exclusions | None = None,
    response_timeout_s: int | None = None,
    replace: bool = True,
) -> Path:
    """Wrap for the parity role: protection `row` of the r of a code. -> the new archive, as in `wrap_deployed`.

    `model_name`: `protection_name` unless given.
    The parity model or student is either `serialized_file`, which takes the place of the user's own (under its name, so
    that the handler loads it as its own), or `parity_model`, a TorchScript file beside it; `exact` needs neither.
    `partial`: it was trained with empty slots, so groups of fewer than k may use it; taken as read of backups only.
    `protects` is the archive's own model unless given. `cost`: of a full group, in deployed inferences, where measured;
    `cost_on`: on which kind of device, `cpu` or `cuda`. On a worker of another kind it does not count.
    `agreement`: how often its rebuilt decisions are the deployed model's own, where measured; proxies hold it to that.
    `tolerance`: for answers that are numbers, how far off one may be to agree; in the answer's own unit.
    `row_errors`: how the errors of all r rows go together, where measured; the same in all of their archives.
    `confidence`: what is expected of an answer by its raw output, as `ts_parity.confidence` writes and reads it.
    """
    source = _wrappable(archive)
    built = make_code(code, k, r, None if coefficients is None else tuple(tuple(map(float, c)) for c in coefficients))
    if not 0 <= row < r:
        raise ArchiveError(f"row counts the r = {r} protections from 0, so it cannot be {row}")
    _check_parity_files(source, code, not built.lossless, serialized_file, parity_model)
    section = _section("parity", source, samples, secret, declaration, never_code)
    section |= {"code": code, "k": k, "r": r, "row": row, "coefficients": [list(c) for c in built.coefficients]}
    section["partial"] = built.family is Family.BACKUP if partial is None else partial
    if cost is not None:
        section["cost"] = float(cost)
        if cost_on is not None:
            section["cost_on"] = cost_on
    if agreement is not None:
        section["agreement"] = float(agreement)
    if tolerance is not None:
        section["tolerance"] = float(tolerance)
    if row_errors is not None:
        section["row_errors"] = row_errors.as_json()
    if confidence is not None:
        section["confidence"] = read_confidence(confidence).as_json()
    replaced: dict[str, Path] = {}
    if serialized_file is not None and source.serialized_file is not None:
        replaced[source.serialized_file] = Path(serialized_file)
    if parity_model is not None:
        section["parity_model"] = PARITY_MODEL
        replaced[PARITY_MODEL] = Path(parity_model)
    whom = protects or source.protects()
    section["protects"] = {"model": whom.model, "version": whom.version, "weights": whom.weights}
    config = _config_text(source, section, response_timeout_s)
    name = model_name or protection_name(whom, code, k, r, row)
    return _write(source, out, name, section, config, samples, replaced, replace)


def protection_name(protects: ProtectedModel, code: str, k: int, r: int = 1, row: int = 0) -> str:
    """A name that no two protections of one fleet share: TorchServe tells models apart by nothing else."""
    name = f"{protects.model}-{protects.version}-{code}-k{k}" + (f"-r{r}-row{row}" if r > 1 else "")
    return re.sub(r"[^A-Za-z0-9_\-.]", "-", name)


def worker_zip_bytes() -> bytes:
    """The worker's subset of this package as an importable zip. Same code, same bytes."""
    package = Path(ts_parity.__file__).parent
    files = [package / name for name in _WORKER_FILES] + sorted((package / "worker").rglob("*.py"))
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for file in files:
            name = f"ts_parity/{file.relative_to(package).as_posix()}"
            # Stored, not deflated: zlib's output differs between versions, and nothing here is large.
            archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), file.read_bytes())
    return written.getvalue()


def _wrappable(path: str | Path) -> Archive:
    archive = read_archive(path)
    if archive.role == "parity":
        raise ArchiveError(f"{path} is a protection already; wrap the archive of the model that it protects")
    handler = _user_handler(archive)
    module = handler.split(":", 1)[0].removesuffix(".py").split("/")[-1]
    if f"{module}.py" not in archive.files and module not in STOCK_HANDLERS and "." not in module:
        raise ArchiveError(
            f"{path}: its handler is {handler}, but there is no {module}.py in the archive and TorchServe has no "
            "handler of that name; pack it again with torch-model-archiver --handler"
        )
    if archive.role is None:
        taken = sorted({WORKER_ZIP, *SHIMS.values()} & set(archive.files))
        if taken:
            raise ArchiveError(f"{path} has a file of its own called {taken[0]}, a name needed here; rename it")
    return archive


def _user_handler(archive: Archive) -> str:
    """The user's own handler, also of an archive that is wrapped already (by hand, or by an older version)."""
    if archive.section is None:
        return archive.handler
    handler = archive.section.get("handler")
    if not isinstance(handler, str) or not handler:
        raise ArchiveError(f"{archive.path}: the {SECTION} section of its config names no handler, the user's own")
    return handler


def _section(
    role: str,
    source: Archive,
    samples: Sequence[SampleRequest | str | Path],
    secret: str | None,
    declaration: Mapping[str, str] | None,
    never_code: Exclusions | None,
) -> dict[str, Any]:
    before = source.section or {}
    declared = {**{key: before[key] for key in _DECLARABLE if key in before}, **(declaration or {})}
    if unknown := sorted(set(declared) - set(_DECLARABLE)):
        raise ArchiveError(f"a declaration has model, call, input and output, not {unknown[0]}")
    if secret is not None and not is_key(secret):
        raise ArchiveError("a secret travels in a header: printable ASCII, not empty, no spaces around it")
    section: dict[str, Any] = {"role": role, "handler": _user_handler(source), **declared}
    listed = [_sample_entry(name, sample) for name, sample in _named_samples(samples)] or before.get("samples")
    if listed:
        section["samples"] = listed
    if never_code:
        section["never_code"] = never_code.as_json()
    elif before.get("never_code"):
        section["never_code"] = before["never_code"]
    if secret or before.get("secret"):
        section["secret"] = secret or before["secret"]
    return section


def _named_samples(samples: Sequence[SampleRequest | str | Path]) -> Iterator[tuple[str, SampleRequest]]:
    for number, given in enumerate(samples):
        sample = given if isinstance(given, SampleRequest) else SampleRequest(Path(given))
        _check_form(sample)
        yield f"{SAMPLES}/{number}_{sample.path.name}", sample


def _check_form(sample: SampleRequest) -> None:
    """Raise ArchiveError for a form whose parts no worker could find."""
    told = email.message.Message()
    told["content-type"] = sample.content_type or "application/octet-stream"
    if told.get_content_type() != "multipart/form-data":
        return
    boundary = told.get_boundary()
    if boundary is None or f"--{boundary}".encode() not in sample.path.read_bytes():
        raise ArchiveError(
            f"{sample.path}: a sample of a form is the whole body that a client sends, and its content type names the "
            f"boundary between its parts: 'multipart/form-data; boundary={boundary or 'BOUNDARY'}'"
        )


def _sample_entry(name: str, sample: SampleRequest) -> str | dict[str, str]:
    return name if sample.content_type is None else {"file": name, "content_type": sample.content_type}


def _check_parity_files(
    source: Archive, code: str, needs_model: bool, serialized_file: str | Path | None, parity_model: str | Path | None
) -> None:
    given = [file for file in (serialized_file, parity_model) if file is not None]
    if needs_model and len(given) != 1:
        raise ArchiveError(f"code {code} needs a model of its own: either serialized_file or parity_model")
    if not needs_model and given:
        raise ArchiveError(f"code {code} runs the deployed model itself: it takes no other model")
    if serialized_file is not None and source.serialized_file is None:
        raise ArchiveError(
            f"{source.path} has no serialized file to replace; give the parity model as TorchScript instead"
        )
    if parity_model is not None:
        check_script(Path(parity_model))
    if serialized_file is not None and source.serialized_file is not None:
        with open_zip(source.path) as archive, archive.open(source.serialized_file) as own:
            check_same_format(Path(serialized_file), own, source.path)


def _write(
    source: Archive,
    out: str | Path,
    model_name: str,
    section: Mapping[str, Any],
    config: str,
    samples: Sequence[SampleRequest | str | Path],
    files: Mapping[str, Path],
    replace: bool,
) -> Path:
    """The user's entries as they are, then ours. `files` replaces or adds entries from files on disk."""
    if not _MODEL_NAME.fullmatch(model_name):
        raise ArchiveError(
            f"{model_name!r} cannot be a model's name: letters, digits, '_', '-' and '.', no other first"
        )
    role = str(section["role"])
    added = dict(files) | {name: sample.path for name, sample in _named_samples(samples)}
    config_file = source.config_file or _free_config_name(source)
    texts = {
        MANIFEST: json.dumps(_manifest(source, model_name, role, config_file), indent=2),
        config_file: config,
        SHIMS[role]: shim(role),
    }
    target = _target(out, model_name)
    output.check_free(target, replace)
    old_samples = (name for name in source.files if samples and name.startswith(f"{SAMPLES}/"))
    leave = [*(SHIMS.values() if source.role else ()), *old_samples]
    rewrite(source, target, {**texts, WORKER_ZIP: worker_zip_bytes()}, added, leave)
    return target


def rewrite(
    source: Archive,
    target: Path,
    texts: Mapping[str, str | bytes],
    files: Mapping[str, Path] | None = None,
    leave: Sequence[str] = (),
) -> None:
    """The archive's entries as they are, but for those of these names: `texts` and `files` (from disk) take their place
    or are added, `leave` are left out.
    """
    files = files or {}
    replaced = {*files, *texts, *leave}
    with output.written(target) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as written:
        with open_zip(source.path) as original:
            for entry in original.infolist():
                if entry.filename not in replaced:
                    _copy(original, entry, written)
        for name, path in files.items():
            try:
                written.write(path, name)
            except OSError as error:
                raise ArchiveError(f"cannot read {path}: {error.strerror}") from None
        for name, text in texts.items():
            written.writestr(name, text)


def _manifest(source: Archive, model_name: str, role: str, config_file: str) -> dict[str, Any]:
    named = {"modelName": model_name, "handler": SHIMS[role], "configFile": config_file}
    return {**source.manifest, "model": {**source.model, **named}}


def _config_text(source: Archive, section: Mapping[str, Any], response_timeout_s: int | None) -> str:
    """The user's YAML, comments and all, with our section at its end."""
    text, wanted = _without_section(source.config_text), dict(source.config)
    if text and not text.endswith("\n"):
        text += "\n"
    if response_timeout_s is not None and wanted.get("responseTimeout") != response_timeout_s:
        if "responseTimeout" in wanted or response_timeout_s < 1:
            raise ArchiveError(
                f"{source.path}: responseTimeout cannot be {response_timeout_s} s: it must be positive, and what the "
                f"archive's own config says stays ({wanted.get('responseTimeout', 'nothing')})"
            )
        wanted["responseTimeout"] = response_timeout_s
        text += f"responseTimeout: {response_timeout_s}\n"
    wanted[SECTION] = dict(section)
    text += _PREAMBLE + yaml.safe_dump({SECTION: dict(section)}, sort_keys=False, default_flow_style=None)
    with contextlib.suppress(ArchiveError):
        if parse_config(text, "") == wanted:
            return text
    # In flow style ({a: 1}), or with a document end, text cannot be appended: then the comments are lost.
    return yaml.safe_dump(wanted, sort_keys=False)


def _without_section(text: str) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return text
    for key, value in root.value:
        if key.value == SECTION:
            return text[: key.start_mark.index].removesuffix(_PREAMBLE) + text[value.end_mark.index :]
    return text


def _free_config_name(source: Archive) -> str:
    return f"{SECTION}-{CONFIG_FILE}" if CONFIG_FILE in source.files else CONFIG_FILE


def _copy(original: zipfile.ZipFile, entry: zipfile.ZipInfo, written: zipfile.ZipFile) -> None:
    kept = zipfile.ZipInfo(entry.filename, entry.date_time)
    kept.compress_type, kept.external_attr, kept.file_size = entry.compress_type, entry.external_attr, entry.file_size
    if entry.is_dir():
        if entry.filename.strip("./"):  # the archive's own folder needs no entry
            written.writestr(kept, b"")
        return
    with original.open(entry) as reading, written.open(kept, "w") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)


def _target(out: str | Path, model_name: str) -> Path:
    out = Path(out)
    return out if out.suffix == ".mar" and not out.is_dir() else out / f"{model_name}.mar"


_SHIM = '''"""The {role} role: what `torch-model-archiver --handler` is given in place of your own handler.

Yours is named in the `ts_parity` section of the archive's config YAML. The code is in `ts_parity.worker`: from the zip
beside this file if there is one (an archive made by `ts-parity package`), else from the installed package.
"""

import os
import sys

_bundled = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ts_parity_worker.zip")
if os.path.exists(_bundled):
    sys.path.insert(0, _bundled)

from ts_parity.worker.entry import make_handle  # noqa: E402

handle = make_handle("{role}")
'''


def shim(role: str) -> str:
    """The text of the handler file of a role: the same as handlers/{role}_handler.py in the repository."""
    return _SHIM.format(role=role)
