"""Write a bundle whole or not at all: the counterpart of seesr.bundle.load."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ram.model import RamConfig
from scripts.dry_run import measure
from seesr.bundle import FILES, TOKENIZER, Components, build_component, stored_tensors


class BundleWriter:
    """Writes a bundle beside `directory` and renames it when the block ends without an error.

    Tensors are stored in `dtype`. Raises RuntimeError if `directory` exists, unless `replace`.
    """

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float16, replace: bool = False) -> None:
        if directory.exists() and not replace:
            raise RuntimeError(f"{directory} exists already; remove it or name another directory")
        self.directory, self.dtype = directory, dtype

    def __enter__(self) -> "BundleWriter":
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = Path(tempfile.mkdtemp(prefix=f".{self.directory.name}-", dir=self.directory.parent))
        self._temporary.chmod(0o755)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                old = self._temporary.with_name(f"{self._temporary.name}.old")
                if self.directory.exists():
                    os.rename(self.directory, old)  # one of the two always exists
                os.rename(self._temporary, self.directory)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def copy(self, directory: Path) -> None:
        """All files of another bundle but its bundle.json."""
        shutil.copytree(directory, self._temporary, ignore=lambda *_: ["bundle.json"], dirs_exist_ok=True)

    def component(self, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """One of FILES with its config.json; tensors under the names they are stored by."""
        self.json(f"{name}/config.json", config)
        path = self._temporary / FILES[name]
        stored = {key: tensors[key].to(self.dtype).contiguous() for key in sorted(tensors)}
        for key, tensor in stored.items():
            if not tensor.isfinite().all():
                raise RuntimeError(f"{name}'s tensor {key} is not finite in {self.dtype}; convert with --dtype fp32")
        save_file(stored, path)
        path.chmod(0o644)

    def info(self, info: Mapping[str, Any]) -> None:
        """bundle.json, with the constants and the sha256 of all that was written so far: call it last."""
        self.json("bundle.json", {**info, **measure_bundle(self._temporary), "files": hash_files(self._temporary)})

    def json(self, name: str, value: Mapping[str, Any]) -> None:
        """A JSON file."""
        self.text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def text(self, name: str, value: str) -> None:
        """A text file."""
        path = self._temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value, encoding="utf-8")

    def tagger(self, config: RamConfig, tensors: Mapping[str, Tensor], tags: str, thresholds: str) -> None:
        """RAM with its tags and their thresholds, one per line."""
        self.component("ram", asdict(config), tensors)
        self.text("ram/tags.txt", tags)
        self.text("ram/thresholds.txt", thresholds)


def save(
    components: Components,
    directory: Path,
    info: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    replace: bool = False,
) -> None:
    """Write `components` as a bundle. `info` (kind, licences, ...) is added to bundle.json."""
    with BundleWriter(directory, dtype, replace) as writer:
        for name in ("unet", "controlnet", "vae", "tiny_vae"):
            if (model := getattr(components, name)) is None:
                continue
            config = {key: value for key, value in model.config.items() if not key.startswith("_")}
            tensors = {to_seesr_key(key): tensor for key, tensor in stored_tensors(model).items()}
            writer.component(name, {"_class_name": type(model).__name__, **config}, tensors)
        text_encoder, tagger = components.text_encoder, components.tagger
        writer.component("text_encoder", text_encoder.config.to_dict(), stored_tensors(text_encoder))
        tags = "".join(f"{tag}\n" for tag in tagger.tags)
        thresholds = "".join(f"{value:.6g}\n" for value in tagger.thresholds.tolist())
        writer.tagger(tagger.model.config, stored_tensors(tagger.model), tags, thresholds)
        scheduler = {key: value for key, value in components.scheduler.config.items() if not key.startswith("_")}
        writer.json("scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler", **scheduler})
        source = Path(components.tokenizer.name_or_path)
        for name in TOKENIZER:
            writer.text(f"tokenizer/{name}", (source / name).read_text(encoding="utf-8"))
        sizes = {"process_size": components.process_size, "least_scale": components.least_scale}
        writer.info({"name": components.name, **sizes, **info})


def to_seesr_key(key: str) -> str:
    """Our name -> stored name; the exact inverse of seesr.image_attention.from_seesr_key."""
    name = r"\.attentions\.(\d+)\.(text|image)\."
    return re.sub(name, lambda m: f".{'image_' if m[2] == 'image' else ''}attentions.{m[1]}.", key)


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """Name -> sha256 of every file of a bundle directory but bundle.json."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "bundle.json")
    return {path.relative_to(directory).as_posix(): sha256(path) for path in paths}


def measure_bundle(directory: Path) -> dict[str, Any]:
    """ "memory" and "flops" of a bundle directory, from its config files and tensor shapes."""
    tiny = ("tiny_vae",) if (directory / "tiny_vae").is_dir() else ()
    return measure(*(build_component(directory, name) for name in ("unet", "controlnet", "vae", "ram", *tiny)))
