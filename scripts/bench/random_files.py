"""Checkpoint files with random values: safetensors and torch's pickles, written with one tensor in memory at a time."""

import copy
import json
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shapes = Mapping[str, Sequence[int]]

KINDS = {torch.int64: "I64", torch.float32: "F32", torch.float16: "F16"}
INTEGERS = ("position_ids", "relative_position_index")


class Text:
    """A text file. Of each kind of file, `size` is in bytes; a pickle's is that of its tensors."""

    def __init__(self, text: str) -> None:
        self.content = text.encode()
        self.size = len(self.content)

    def write(self, path: Path, random: torch.Generator) -> None:
        path.write_bytes(self.content)


class Weights:
    """A safetensors file as diffusers and transformers write it, with floats in `dtype`."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype) -> None:
        tensors = [(name, empty(name, shape, dtype)) for name, shape in shapes.items()]
        self.tensors = sorted(tensors, key=lambda item: -item[1].itemsize)  # integers first: each begins aligned
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in self.tensors:
            start, end = end, end + tensor.nbytes
            header[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        self.header = text + b" " * (-len(text) % 8)
        self.size = 8 + len(self.header) + end

    def write(self, path: Path, random: torch.Generator) -> None:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(self.header)) + self.header)
            for name, tensor in self.tensors:
                file.write(_values(name, tensor, random))


class Pickle:
    """What torch.save writes of nested dicts with tensors of `empty`. A tensor may stand in several places."""

    def __init__(self, value: dict[Any, Any]) -> None:
        self.value = value
        self.tensors: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in _tensors(value):
            self.tensors.setdefault(id(tensor), (name, tensor))
        self.size = sum(tensor.nbytes for _, tensor in self.tensors.values())

    def write(self, path: Path, random: torch.Generator) -> None:
        room = {key: torch.empty(tensor.shape, dtype=tensor.dtype) for key, (_, tensor) in self.tensors.items()}
        with torch.serialization.skip_data():  # reads and writes no values: `room` is never touched
            torch.save(copy.deepcopy(self.value, dict(room)), path)
        records = dict(_records(path))
        with path.open("r+b") as file:
            for number, (name, tensor) in enumerate(self.tensors.values()):
                offset, size = records[f"data/{number}"]
                if size != tensor.nbytes:
                    raise RuntimeError(f"torch.save must leave {tensor.nbytes} bytes for {name}, got {size}")
                file.seek(offset)
                file.write(_values(name, tensor, random))


File = Text | Weights | Pickle


def empty(name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without values, of integers if its name says so."""
    return torch.empty(*shape, dtype=torch.int64 if name.endswith(INTEGERS) else dtype, device="meta")


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts with their keys, in the order that pickle meets them."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, str(key))


def _records(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (offset, bytes)) of what a zip archive stores uncompressed, without the folder around it."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            lengths = struct.unpack("<HH", file.read(4))  # of the name, and of the padding
            yield info.filename.partition("/")[2], (info.header_offset + 30 + sum(lengths), info.file_size)


def _values(name: str, like: Tensor, random: torch.Generator) -> memoryview:
    """Random values of a spread that keeps activations finite; integers count up."""
    if not like.is_floating_point():
        return torch.arange(like.numel()).to(like.dtype).numpy().data
    bound = 1 / math.sqrt(like[0].numel()) if like.ndim > 1 else 0.02
    values = torch.empty(like.shape).uniform_(-bound, bound, generator=random)
    if like.ndim == 1 and "norm" in name.lower() and name.endswith("weight"):
        values += 1
    return values.to(like.dtype).contiguous().numpy().data
