"""The archive of a program: a zip of JSON and of raw tensors, read without torch's loader.

Every member must be one that `torch.export.save` writes. Pickled members are refused, or, like the sample inputs, never
opened.
"""

import json
import re
import stat
import zipfile
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import Any

import torch
from torch import Tensor

from atent_ext.storage.untrusted import line
from atent_ext.storage.untrusted_program.refused import Refused, field, only, short, whole

_MEMBERS = 20_000
_JSON = 32 * 2**20
"""Bytes of a JSON member, at most: ten thousand operators with the names of their sources take 20 million."""
_SAVE = "write it with torch.export.save of torch 2.9 or later, or with `atent export`"
_PLAIN = re.compile(
    r"models/[\w.-]+\.json|data/weights/(weight_\d+|[\w.-]+_weights_config\.json)"
    r"|data/constants/(tensor_\d+|[\w.-]+_constants_config\.json)|data/sample_inputs/[\w.-]+\.pt"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment|extra/[\w.-]+"
)
_DTYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16}
_DTYPES |= {7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
_STRIDED = 7
_NAME = re.compile(r"[\w.-]{1,500}", re.ASCII)


@dataclass(frozen=True)
class Archive:
    """What a program's file holds.

    model: the graph, as JSON. weights, constants: tensors by the name that the graph has for them. parameters: which of
    the weights are parameters.
    """

    model: dict[str, Any]
    weights: dict[str, Tensor]
    constants: dict[str, Tensor]
    parameters: frozenset[str]


def read(content: bytes) -> Archive:
    """Read the bytes of a .pt2 file. Raises Refused for anything but one program with raw tensors."""
    if not content.startswith(b"PK\x03\x04"):
        raise Refused(f"is no program; {_SAVE}")
    if content.count(b"PK\x01\x02") > _MEMBERS:
        raise Refused(f"is a zip of more than {_MEMBERS:,} members; {_SAVE}", "too-large")
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return _Reader(archive, len(content)).program()
    except Refused:
        raise
    except (RecursionError, MemoryError):
        raise Refused("holds JSON that is nested too deeply", "too-large") from None
    except Exception as error:  # a broken archive fails in many ways: BadZipFile, EOFError, struct.error
        raise Refused(f"is a broken zip archive, perhaps cut off ({line(error)}); send it again") from None


def dtype(number: Any, where: str) -> torch.dtype:
    """The type of numbers that torch's schema has a number for."""
    known = _DTYPES.get(number) if type(number) is int else None
    if known is None:
        raise Refused(f"has numbers of an unknown type: {where} is {short(number)}", "unsupported")
    return known


def checked_name(name: Any, what: str) -> str:
    """A name of the file, which must be letters, digits, dots, dashes and underscores."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refused(f"has a {what} that is no plain name: {short(name)}", "unsafe")
    return name


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        members = archive.infolist()
        root = members[0].filename.partition("/")[0] if members else ""
        self.root = f"{root}/"
        self.left = 2 * size  # bytes that tensors may take: entries may name the same numbers again and again
        self.sizes = {member.filename.removeprefix(self.root): member.file_size for member in members}
        for member in members:
            _check_member(member, self.root)
        if len({member.filename.lower() for member in members}) < len(members):
            raise Refused(f"is a zip with two members of one name; {_SAVE}")
        if sum(self.sizes.values()) > size:
            raise Refused("is a zip whose members claim more bytes than the file has", "too-large")

    def program(self) -> Archive:
        self._check_format()
        names = [member[7:-5] for member in self.sizes if member.startswith("models/") and member.endswith(".json")]
        if len(names) != 1:
            raise Refused(f"holds {len(names)} programs; one is needed")
        weights, parameters = self._tensors("weights", f"{names[0]}_weights_config.json", "weight_")
        constants, _ = self._tensors("constants", f"{names[0]}_constants_config.json", "tensor_")
        return Archive(self._json(f"models/{names[0]}.json"), weights, constants, parameters)

    def _check_format(self) -> None:
        if "archive_format" not in self.sizes or self._bytes("archive_format", 10) != b"pt2":
            raise Refused(f"is a zip archive of another kind; {_SAVE}")
        order = self._bytes("byteorder", 10) if "byteorder" in self.sizes else b"little"
        if order != b"little":
            raise Refused(f"holds numbers in the byte order {short(order)}; write it on another machine", "unsupported")

    def _bytes(self, name: str, most: int) -> bytes:
        if self.sizes[name] > most:
            raise Refused(f"holds {name} of {self.sizes[name]:,} bytes; at most {most:,} are read", "too-large")
        return self.archive.read(self.root + name)

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self.sizes:
            raise Refused(f"lacks {name}; {_SAVE}")
        try:
            value = json.loads(self._bytes(name, _JSON).decode("utf-8"), parse_constant=_no_constant)
        except ValueError as error:
            raise Refused(f"has {name} that is no JSON ({line(error)}); send it again") from None
        if not isinstance(value, dict):
            raise Refused(f"has {name} without fields")
        return value

    def _tensors(self, folder: str, config: str, prefix: str) -> tuple[dict[str, Tensor], frozenset[str]]:
        """The tensors of a folder by name, and which are parameters. Equal entries become one tensor."""
        if f"data/{folder}/{config}" not in self.sizes:
            raise Refused(f"lacks data/{folder}/{config}; {_SAVE}")
        entries = field(self._json(f"data/{folder}/{config}"), "config", dict, config)
        tensors: dict[str, Tensor] = {}
        shared: dict[str, Tensor] = {}
        for name, entry in entries.items():
            checked_name(name, "tensor")
            where = f"{folder} {short(name)}"
            path = field(entry, "path_name", str, where)
            if entry.get("use_pickle") is not False or not re.fullmatch(rf"{prefix}\d+", path):
                raise Refused(f"holds a pickle, which could run code: {where} in {short(path)}", "unsafe")
            if f"data/{folder}/{path}" not in self.sizes:
                raise Refused(f"lacks data/{folder}/{short(path)}, the numbers of {where}")
            meta = field(entry, "tensor_meta", dict, where)
            key = json.dumps([path, meta], sort_keys=True)
            if key not in shared:
                shared[key] = self._tensor(f"data/{folder}/{path}", meta, where)
            tensors[name] = shared[key]
        return tensors, frozenset(name for name, entry in entries.items() if entry.get("is_param") is True)

    def _tensor(self, member: str, meta: dict[str, Any], where: str) -> Tensor:
        kind = dtype(meta.get("dtype"), where)
        if meta.get("layout") != _STRIDED:
            raise Refused(f"holds {where} in layout {short(meta.get('layout'))}; only strided tensors are read")
        sizes = [_length(part, where) for part in field(meta, "sizes", list, where)]
        strides = [_length(part, where) for part in field(meta, "strides", list, where)]
        offset = _length(meta.get("storage_offset"), where)
        held = self.sizes[member] // kind.itemsize
        if len(sizes) != len(strides) or len(sizes) > 16:
            raise Refused(f"is broken: {where} has {len(sizes)} sizes and {len(strides)} strides")
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if prod(sizes) and (last >= held or prod(sizes) > held):
            asked = f"{prod(sizes):,} numbers up to place {last:,}"
            raise Refused(f"claims more than it has: {where} asks for {asked}, of {held:,}", "too-large")
        if not prod(sizes):
            return torch.zeros(sizes, dtype=kind)
        self.left -= self.sizes[member]
        if self.left < 0:
            raise Refused("has entries that name the same numbers again and again", "too-large")
        content = bytearray(self._bytes(member, self.sizes[member]))
        if kind is torch.bool and max(content) > 1:
            raise Refused(f"is broken: {where} holds truth values other than 0 and 1")
        numbers = torch.frombuffer(content, dtype=kind, count=held)
        tensor = numbers.as_strided(sizes, strides, offset).clone()
        if kind.is_floating_point and bool(tensor.isnan().any()):
            raise Refused(f"holds NaN in {where}; send the weights of a healthy epoch", "bad-value")
        return tensor


def _check_member(member: zipfile.ZipInfo, root: str) -> None:
    name = member.filename
    if stat.S_ISLNK(member.external_attr >> 16):
        raise Refused(f"holds a symbolic link, {short(name)}", "unsafe")
    inside = name.removeprefix(root)
    if inside.startswith("data/aotinductor/"):
        raise Refused(f"holds compiled code, {short(name)}; {_SAVE}", "unsafe")
    if inside.startswith(("data/constants/custom_obj_", "data/constants/opaque_obj_")):
        raise Refused(f"holds a pickled object, {short(name)}, which could run code", "unsafe")
    if inside == "serialized_exported_program.json":
        raise Refused(f"was written by an older version of torch; {_SAVE}", "unsupported")
    if not name.startswith(root) or not _PLAIN.fullmatch(inside):
        raise Refused(f"holds {short(name)}, which no program has; {_SAVE}", "unsafe")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size or member.flag_bits & 1:
        raise Refused(f"holds a packed member, {short(name)} of {member.file_size:,} bytes; {_SAVE}")


def _length(part: Any, where: str) -> int:
    kind, value = only(part, where)
    if kind != "as_int":
        raise Refused(f"is broken: {where} has a size that is no number")
    number = whole(value, where)
    if number < 0:
        raise Refused(f"is broken: {where} has a negative size, {number}")
    return number


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")
