"""Check the bytes of an untrusted weights file before safetensors or torch parse them.

torch's `weights_only` already refuses code. The checks here also refuse files that would exhaust memory, run forever or
crash the process: claimed sizes that exceed the file, zip members that unpack to more than the file, and dictionary
keys whose hash takes exponential time.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from atent_ext.core.errors import BadInput, Code
from atent_ext.storage.untrusted import line

_HEADER = 100_000_000
"""Largest safetensors header in bytes, the limit of safetensors itself."""
_PICKLE = 4 * 2**20
"""Largest pickle of a torch file in bytes. It holds the tensors' names, no data: 2,000 tensors take half a megabyte."""
_MEMBERS = 100_000
"""Largest number of members of a torch zip."""
_ZIP = b"PK\x03\x04"
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_SAVE = "a plain state dict is needed: torch.save(model.state_dict(), ...), or better a .safetensors file"
_AGAIN = "download it again, from the link of the file itself"

_NOT_WEIGHTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not weights: fetch the file with `git lfs pull`"),
    (b"<!doctype html", "an HTML page, not weights: " + _AGAIN),
    (b"<html", "an HTML page, not weights: " + _AGAIN),
    (b"<?xml", "an XML page, not weights: " + _AGAIN),
    (b'{"', "JSON text, not weights: " + _AGAIN),
    (b"\x1f\x8b", "a gzip archive, not weights: unpack it"),
    (b"bzh", "a bzip2 archive, not weights: unpack it"),
    (b"\xfd7zxz", "an xz archive, not weights: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive, not weights: unpack it"),
    (b"rar!", "a RAR archive, not weights: unpack it"),
    (b"\x89hdf", "an HDF5 file of another library: convert it to a state dict of tensors"),
    (b"\x93numpy", "a NumPy array: convert it to a state dict of tensors"),
)


def check(content: bytes, path: Path) -> None:
    """Check the bytes of a weights file before it is parsed; `path` names the file in errors.

    The content says of which kind it is: safetensors, a zip or a pickle of torch.save. Raises BadInput for a file of
    another kind (the message says which), for a file that is cut off or claims a larger size than it has, and for a
    pickle that names anything but tensors.
    """
    if is_safetensors(content, path):
        return _check_header(content, path)
    _check_kind(content, path)
    if content.startswith(_ZIP):
        _check_zip(content, path)
    elif path.suffix == ".safetensors" and not content.startswith(b"\x80"):
        raise _error(path, f"is not a safetensors file; {_SAVE}")
    else:
        _check_legacy(content, path)


def is_safetensors(content: bytes, path: Path) -> bool:
    """Whether the bytes start as a safetensors file does, by a length and a header in JSON.

    In a file of another name the length must fit, too: the first letters of a JSON text would be an enormous one.
    """
    fits = path.suffix == ".safetensors" or int.from_bytes(content[:8], "little") <= len(content) - 8
    return content[8:9] == b"{" and fits


def looks_like_weights(head: bytes) -> bool:
    """Whether a file that starts with `head`, some hundred bytes, seems to be of safetensors or torch.save."""
    zipped = head.startswith(_ZIP) and b"data.pkl" in head
    return zipped or head.startswith(b"\x80\x02") or (head[8:9] == b"{" and head[4:8] == bytes(4))


def kind(head: bytes, path: Path) -> str:
    """What a file that starts with `head` is, as the end of a sentence, if it is no weights file."""
    try:
        _check_kind(head, path)
    except BadInput as error:
        return str(error).removeprefix(f"{path} is ")
    return "no file of safetensors or torch.save"


def _error(path: Path, what: str, code: Code = "unreadable") -> BadInput:
    return BadInput(f"{path} {what}", code=code, field="path")


def _check_kind(content: bytes, path: Path) -> None:
    if not content:
        raise _error(path, "is empty: download it again")
    head = content[:200].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, what in _NOT_WEIGHTS:
        if head.startswith(start):
            raise _error(path, f"is {what}")
    if content[257:262] == b"ustar":
        raise _error(path, f"is a tar archive, as the first versions of torch wrote; {_SAVE}")


def _check_header(content: bytes, path: Path) -> None:
    """A safetensors file starts with the length of its header, 8 bytes, then the header in JSON."""
    length = int.from_bytes(content[:8], "little")
    if length > min(_HEADER, len(content) - 8):
        size = f"{length:,} bytes, and the file has {len(content):,}"
        raise _error(path, f"claims a header of {size}: it is cut off or forged; download it again")


def _check_zip(content: bytes, path: Path) -> None:
    """A torch zip holds data.pkl, which names the tensors, and a member data/KEY with the numbers of each tensor."""
    if content.count(b"PK\x01\x02") > _MEMBERS:
        raise _error(path, f"is a zip of more than {_MEMBERS:,} members; {_SAVE}", "too-large")
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = archive.infolist()
            _check_members(members, len(content), path)
            root = members[0].filename.partition("/")[0] if members else ""  # as torch's reader finds it
            entry = next((member for member in members if member.filename == f"{root}/data.pkl"), None)
            if entry is None:
                raise _error(path, f"is a zip archive that torch.save did not write; {_SAVE}")
            if entry.file_size > _PICKLE:
                what = f"holds a pickle of {entry.file_size:,} bytes, which no tensors need"
                raise _error(path, f"{what}; {_SAVE}", "too-large")
            claimed = _storages(BytesIO(archive.read(entry)), path)
    except BadInput:
        raise
    except Exception as error:  # a broken archive fails in many ways: BadZipFile, EOFError, struct.error
        raise _error(path, f"is a broken zip archive, perhaps cut off ({line(error)}); download it again") from None
    _check_claims(claimed, {member.filename: member.file_size for member in members}, f"{root}/data/", path)


def _check_members(members: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    if any(member.filename.endswith("/constants.pkl") or "/code/" in member.filename for member in members):
        raise _error(path, f"is a TorchScript program, which holds code; {_SAVE}", "unsafe")
    names = [member.filename.lower() for member in members]  # torch's reader ignores case
    if len(set(names)) < len(names):
        raise _error(path, f"is a zip with two members of one name; {_SAVE}")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            what = f"is a zip with a compressed member, {member.filename[:100]!r} of {member.file_size:,} bytes"
            raise _error(path, f"{what}; torch.save compresses nothing; {_SAVE}")
    if sum(member.file_size for member in members) > size:
        raise _error(path, f"is a zip whose members are larger than the file; {_SAVE}")


def _check_claims(claimed: Mapping[str, int], sizes: Mapping[str, int], folder: str, path: Path) -> None:
    # torch trusts the number of elements in the pickle and would read beyond the end of the member.
    for key, size in claimed.items():
        if sizes.get(folder + key) != size:
            claim = f"tensor data {key[:50]!r} claims {size:,} bytes and has {sizes.get(folder + key, 0):,}"
            message = f"{path}: {claim}: the file is broken or forged; download it again"
            raise BadInput(message, code="unreadable", field="path")


def _check_legacy(content: bytes, path: Path) -> None:
    """What torch.save wrote before 1.6: pickles of magic, protocol, system, object and keys, then the numbers."""
    if not content.startswith(b"\x80"):
        raise _error(path, f"is no file that torch.save wrote; {_SAVE}")
    stream = BytesIO(content[:_PICKLE])
    if _PickleScanner(stream, path).run() != _TORCH_MAGIC:
        raise _error(path, f"is a pickle that torch.save did not write; {_SAVE}")
    _storages(stream, path)
    _storages(stream, path)
    claimed = sum(_storages(stream, path).values())
    _storages(stream, path)
    if claimed > len(content) - stream.tell():
        size = f"{claimed:,} bytes of tensors, and the file has {len(content):,}"
        raise _error(path, f"claims {size}: it is cut off or forged; download it again")


# ---- pickles

_BESIDE = re.compile(
    r"(numpy|argparse|pathlib|datetime|omegaconf|easydict|yacs)\..*|types\.SimpleNamespace|.*defaultdict"
)
"""What trainers usually store beside the tensors."""
_CONVERTER = (
    "import torch; keep = lambda x: {{k: keep(v) for k, v in x.items() if isinstance(v, (dict, torch.Tensor))}} "
    "if isinstance(x, dict) else x; "
    "torch.save(keep(torch.load('{file}', map_location='cpu', weights_only=False)), 'tensors.pt')"
)
"""Code that keeps the tensors of a file. Loading runs what the file says, so only its author may run it."""


def _converter(name: str, path: Path) -> str:
    """The remedy for a pickle that names something: a command, if a trainer may well have stored that."""
    file = path.name
    if not (_BESIDE.fullmatch(name) and file.isprintable() and not set(file) & set("'\"\\$`!")):
        return _SAVE
    return f'whoever trained it, and nobody else, converts it by: python -c "{_CONVERTER.format(file=file)}"'


def _storages(stream: BytesIO, path: Path) -> dict[str, int]:
    """Scan the next pickle of a stream: the storages that it asks for, and their sizes in bytes."""
    scanner = _PickleScanner(stream, path)
    scanner.run()
    return scanner.storages


_SIZES = {
    "ComplexDouble": 16,
    "ComplexFloat": 8,
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
}
_STORAGES = {f"torch.{name}Storage": size for name, size in (_SIZES | {"Bool": 1}).items()}
_STORAGES["torch.storage.UntypedStorage"] = 1
_CALLED = {"collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device"}
_CALLED |= {f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "parameter")}


@dataclass(frozen=True)
class _Global:
    """A class or function that a pickle names. Calling it returns an empty mapping instead."""

    name: str

    def __call__(self, *arguments: object) -> dict[Any, Any]:
        if self.name.startswith("collections.") and not all(isinstance(value, dict) for value in arguments):
            raise ValueError(f"{self.name} of something that is not a mapping")  # it would hash each of them
        return {}


class _Tuple(tuple[Any, ...]):
    """Not hashable, so that it cannot be a key: the hash of nested tuples can take exponential time."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


def _as_tuple(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(scanner: Any) -> None:
        load(scanner)
        scanner.stack[-1] = _Tuple(scanner.stack[-1])

    return run


def _check_state(scanner: Any) -> None:
    """Allow a state dict its one attribute, `_metadata`; any other could replace a method of the mapping."""
    state = scanner.stack.pop()
    if not isinstance(state, dict) or state.keys() - {"_metadata"}:
        raise ValueError("an object with attributes")


_PLAIN = "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING"
_BUILT = "EMPTY_DICT EMPTY_LIST EMPTY_TUPLE APPEND APPENDS SETITEM SETITEMS GLOBAL REDUCE BINPERSID"
_MEMO = "BINPUT LONG_BINPUT BINGET LONG_BINGET"
_TUPLES = "TUPLE TUPLE1 TUPLE2 TUPLE3"


def _loaders(names: str) -> dict[int, Callable[[Any], None]]:
    codes = [getattr(pickle, name)[0] for name in names.split()]
    return {code: pickle._Unpickler.dispatch[code] for code in codes}


class _PickleScanner(pickle._Unpickler):
    """Reads a pickle and builds only lists and mappings from it.

    Refuses names that do not belong to tensors; torch's own reader would still allow a bytearray of any size.
    `storages`: key -> size in bytes of each storage that the pickle asks for.
    """

    dispatch = {  # noqa: RUF012 (as in the base class)
        **_loaders(f"{_PLAIN} {_BUILT} {_MEMO}"),
        **{code: _as_tuple(load) for code, load in _loaders(_TUPLES).items()},
        pickle.BUILD[0]: _check_state,
    }

    def __init__(self, stream: BytesIO, path: Path) -> None:
        super().__init__(stream)
        self.path = path
        self.storages: dict[str, int] = {}

    def run(self) -> Any:
        try:
            return self.load()
        except BadInput:
            raise
        except Exception as error:  # bytes that are no pickle fail in many ways
            what = f"is broken, cut off, or holds more than tensors ({line(error)})"
            raise _error(self.path, f"{what}; {_SAVE}") from None

    def find_class(self, module: str, name: str) -> _Global:
        full = f"{module}.{name}"
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not (dtype or full in _CALLED or full in _STORAGES):
            what = f"holds more than tensors: it names {full[:100]!r}, which was not run"
            raise _error(self.path, f"{what}; {_converter(full, self.path)}", "unsafe")
        return _Global(full)

    def persistent_load(self, pid: Any) -> dict[Any, Any]:
        word, kind, key, _, count, *_ = pid
        if word != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
            raise ValueError("a reference to a storage that torch does not write")
        size = count * _STORAGES[kind.name]
        if self.storages.setdefault(key, size) != size:
            raise ValueError(f"storage {key[:50]} has two sizes")
        return {}
