"""A stranger's weights file, looked at before safetensors or torch parse it: the bytes are what they claim to be.

torch's `weights_only` keeps code out. What is refused here besides would still take memory, time or the process: sizes
that a file claims and does not have, members that unpack to more than the file, keys whose hash does not end.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from atent_ext.core.errors import BadInput
from atent_ext.storage.untrusted import line

_HEADER = 100_000_000
"""Bytes of a safetensors header at most, as in safetensors itself."""
_PICKLE = 4 * 2**20
"""Bytes of the pickle in a torch file, which names the tensors and holds none: 2,000 tensors take half a megabyte."""
_MEMBERS = 100_000
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
    """Check the bytes of a .safetensors, .pt or .pth file; afterwards it may be parsed.

    Raises BadInput for what is no such file (and says what it is), for one that is cut off or claims more than it has,
    and for a pickle that names anything but tensors.
    """
    if path.suffix == ".safetensors" and content[8:9] == b"{":
        return _check_header(content, path)
    _check_kind(content, path)
    if path.suffix == ".safetensors":
        raise BadInput(f"{path} is not a safetensors file; {_SAVE}")
    if content.startswith(b"PK\x03\x04"):
        _check_zip(content, path)
    else:
        _check_legacy(content, path)


def _check_kind(content: bytes, path: Path) -> None:
    if not content:
        raise BadInput(f"{path} is empty: download it again")
    head = content[:200].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, what in _NOT_WEIGHTS:
        if head.startswith(start):
            raise BadInput(f"{path} is {what}")
    if content[257:262] == b"ustar":
        raise BadInput(f"{path} is a tar archive, as the first versions of torch wrote; {_SAVE}")
    if path.suffix == ".safetensors" and content.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise BadInput(f"{path} is a file of torch.save by its first bytes; name it .pt")


def _check_header(content: bytes, path: Path) -> None:
    """A safetensors file starts with the length of its header, 8 bytes, then the header in JSON."""
    length = int.from_bytes(content[:8], "little")
    if length > min(_HEADER, len(content) - 8):
        raise BadInput(
            f"{path} claims a header of {length:,} bytes, and the file has {len(content):,}: "
            "it is cut off or forged; download it again"
        )


def _check_zip(content: bytes, path: Path) -> None:
    """A torch zip holds data.pkl, which names the tensors, and one member data/KEY for the numbers of each."""
    if content.count(b"PK\x01\x02") > _MEMBERS:
        raise BadInput(f"{path} is a zip of more than {_MEMBERS:,} members; {_SAVE}")
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = archive.infolist()
            _check_members(members, len(content), path)
            root = members[0].filename.partition("/")[0] if members else ""  # as torch's reader finds it
            named = next((one for one in members if one.filename == f"{root}/data.pkl"), None)
            if named is None:
                raise BadInput(f"{path} is a zip archive that torch.save did not write; {_SAVE}")
            if named.file_size > _PICKLE:
                raise BadInput(f"{path} holds a pickle of {named.file_size:,} bytes, which no tensors need; {_SAVE}")
            claimed = _storages(BytesIO(archive.read(named)), path)
    except BadInput:
        raise
    except Exception as error:  # a broken archive fails in many ways: BadZipFile, EOFError, struct.error
        raise BadInput(f"{path} is a broken zip archive, perhaps cut off ({line(error)}); download it again") from None
    _check_claims(claimed, {one.filename: one.file_size for one in members}, f"{root}/data/", path)


def _check_members(members: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    if any(one.filename.endswith("/constants.pkl") or "/code/" in one.filename for one in members):
        raise BadInput(f"{path} is a TorchScript program, which holds code; {_SAVE}")
    names = [one.filename.lower() for one in members]  # torch's reader takes A for a
    if len(set(names)) < len(names):
        raise BadInput(f"{path} is a zip with two members of one name; {_SAVE}")
    for one in members:
        if one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size:
            raise BadInput(
                f"{path} is a zip with a compressed member, {one.filename[:100]!r} of {one.file_size:,} bytes; "
                f"torch.save compresses nothing; {_SAVE}"
            )
    if sum(one.file_size for one in members) > size:
        raise BadInput(f"{path} is a zip whose members are larger than the file; {_SAVE}")


def _check_claims(claimed: Mapping[str, int], sizes: Mapping[str, int], folder: str, path: Path) -> None:
    # torch trusts the number of elements that the pickle gives, and would read beyond the member.
    for key, size in claimed.items():
        if sizes.get(folder + key) != size:
            raise BadInput(
                f"{path}: tensor data {key[:50]!r} claims {size:,} bytes and has {sizes.get(folder + key, 0):,}: "
                "the file is broken or forged; download it again"
            )


def _check_legacy(content: bytes, path: Path) -> None:
    """What torch.save wrote before 1.6: pickles of magic, protocol, system, object and keys, then the numbers."""
    if not content.startswith(b"\x80"):
        raise BadInput(f"{path} is no file that torch.save wrote; {_SAVE}")
    stream = BytesIO(content[:_PICKLE])
    if _Dry(stream, path).run() != _TORCH_MAGIC:
        raise BadInput(f"{path} is a pickle that torch.save did not write; {_SAVE}")
    _storages(stream, path)
    _storages(stream, path)
    claimed = sum(_storages(stream, path).values())
    _storages(stream, path)
    if claimed > len(content) - stream.tell():
        raise BadInput(
            f"{path} claims {claimed:,} bytes of tensors, and the file has {len(content):,}: "
            "it is cut off or forged; download it again"
        )


# ---- pickles


def _storages(stream: BytesIO, path: Path) -> dict[str, int]:
    dry = _Dry(stream, path)
    dry.run()
    return dry.storages


_SIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
_STORAGES = {f"torch.{name}Storage": size for name, size in (_SIZES | {"Bool": 1}).items()}
_STORAGES["torch.storage.UntypedStorage"] = 1
_CALLED = {"collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device"}
_CALLED |= {f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "parameter")}


@dataclass(frozen=True)
class _Named:
    """A class or function that a pickle names. Calling it makes an empty mapping, whatever it is."""

    name: str

    def __call__(self, *arguments: object) -> dict[Any, Any]:
        if self.name.startswith("collections.") and not all(isinstance(one, dict) for one in arguments):
            raise ValueError(f"{self.name} of other things than a mapping")  # it would take a hash of each
        return {}


class _Tuple(tuple[Any, ...]):
    """Cannot be a key: the hash of a tuple of tuples of tuples may never end."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


def _as_tuple(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(dry: Any) -> None:
        load(dry)
        dry.stack[-1] = _Tuple(dry.stack[-1])

    return run


def _check_state(dry: Any) -> None:
    """A state dict has one attribute; any other could stand in the place of a method of the mapping."""
    state = dry.stack.pop()
    if not isinstance(state, dict) or state.keys() - {"_metadata"}:
        raise ValueError("an object with attributes")


_PLAIN = "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING"
_BUILT = "EMPTY_DICT EMPTY_LIST EMPTY_TUPLE APPEND APPENDS SETITEM SETITEMS GLOBAL REDUCE BINPERSID"
_MEMO = "BINPUT LONG_BINPUT BINGET LONG_BINGET"
_TUPLES = "TUPLE TUPLE1 TUPLE2 TUPLE3"


def _loaders(names: str) -> dict[int, Callable[[Any], None]]:
    codes = [getattr(pickle, name)[0] for name in names.split()]
    return {code: pickle._Unpickler.dispatch[code] for code in codes}


class _Dry(pickle._Unpickler):
    """Goes through a pickle and builds nothing of it but lists and mappings.

    Refuses names that are not of tensors, before torch's own reader, which lets a bytearray of any size be made; and
    notes the bytes of each storage that the pickle asks for.
    """

    dispatch = {  # noqa: RUF012 (the base class has it so)
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
        except Exception as error:  # bytes that are no pickle fail in every way
            raise BadInput(
                f"{self.path} is broken, cut off, or holds more than tensors ({line(error)}); {_SAVE}"
            ) from None

    def find_class(self, module: str, name: str) -> _Named:
        full = f"{module}.{name}"
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not (dtype or full in _CALLED or full in _STORAGES):
            raise BadInput(f"{self.path} holds more than tensors: it names {full[:100]!r}, which was not run; {_SAVE}")
        return _Named(full)

    def persistent_load(self, pid: Any) -> dict[Any, Any]:
        word, kind, key, _, count, *_ = pid
        if word != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
            raise ValueError("a storage that is none")
        size = count * _STORAGES[kind.name]
        if self.storages.setdefault(key, size) != size:
            raise ValueError(f"storage {key[:50]} has two sizes")
        return {}
