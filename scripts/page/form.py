"""An OpenAPI schema -> the fields of a form, and the values of a form -> the inputs of a request."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["file", "text", "integer", "number", "boolean", "choice"]

EVERYDAY = ("scale_factor", "target_long_side", "num_inference_steps", "fidelity", "output_format")
"""Inputs in sight; files and required inputs are too. The others are folded."""

KINDS: dict[str, Kind] = {"integer": "integer", "number": "number", "boolean": "boolean"}


@dataclass(frozen=True)
class Field:
    """One input of the model. `several` means a list of such values."""

    name: str
    title: str
    kind: Kind
    description: str = ""
    default: Any = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    several: bool = False

    @property
    def everyday(self) -> bool:
        return self.required or self.kind == "file" or self.name in EVERYDAY

    @property
    def is_number(self) -> bool:
        return self.kind in ("integer", "number")

    @property
    def step(self) -> float | None:
        """The step of a slider; None where a slider would be too coarse, or a limit or a default is missing."""
        if self.minimum is None or self.maximum is None or self.default is None or not self.is_number:
            return None
        span = self.maximum - self.minimum
        return (1 if span <= 100 else None) if self.kind == "integer" else 0.05 if span <= 10 else None

    @property
    def info(self) -> str:
        """The description, with the range where no slider shows it."""
        low, high = self.minimum, self.maximum
        if self.step is not None or (low is None and high is None):
            return self.description
        limits = (
            f"{low:.16g} or more"
            if high is None
            else f"up to {high:.16g}"
            if low is None
            else f"{low:.16g} to {high:.16g}"
        )
        return f"{self.description} ({limits})".strip()


def read_fields(document: Mapping[str, Any]) -> list[Field]:
    """The inputs of a Cog server's OpenAPI document, in their order. ValueError if it has none."""
    schemas = document.get("components", {}).get("schemas", {})
    declared = schemas.get("Input", {}).get("properties")
    if not declared:
        raise ValueError(
            "the server must describe its inputs (components.schemas.Input), and does not; is it a Cog server?"
        )
    required = schemas["Input"].get("required", [])
    ordered = sorted(declared.items(), key=lambda item: item[1].get("x-order", 0))
    return [_field(name, about, name in required, schemas) for name, about in ordered]


def _field(name: str, about: Mapping[str, Any], required: bool, schemas: Mapping[str, Any]) -> Field:
    several = about.get("type") == "array"
    item = about.get("items", {}) if several else about
    choices: tuple[Any, ...] = ()
    for reference in item.get("allOf", [item] if "$ref" in item else []):
        choices = tuple(schemas.get(reference.get("$ref", "").rpartition("/")[2], {}).get("enum", ()))
    kind = KINDS.get(item.get("type", ""), "text")
    kind = "choice" if choices else "file" if item.get("format") == "uri" else kind
    title = about.get("title") or name
    if title.replace(" ", "_").lower() == name.lower():  # Cog's own title: "Num Inference Steps"
        title = name.replace("_", " ").capitalize()
    limits = (about.get("minimum"), about.get("maximum"))
    description = about.get("description") or ""
    return Field(name, title, kind, description, about.get("default"), required, *limits, choices, several)


def main_field(fields: Sequence[Field]) -> Field | None:
    """The input that takes the photographs: the first file."""
    return next((field for field in fields if field.kind == "file"), None)


def read_values(fields: Sequence[Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """A form's values -> the inputs of a request, without those that have their default. Files are not looked at.

    ValueError names a required input that is missing, or a number or a list that cannot be read.
    """
    inputs: dict[str, Any] = {}
    for field in fields:
        if field.kind == "file":
            continue
        value = _parse(field, values.get(field.name))
        if value is None or value == [] or (value == "" and (field.default is None or field.required)):
            if field.required:
                raise ValueError(f"{field.title} is missing: the model cannot run without it")
        elif field.required or value != field.default:
            inputs[field.name] = value
    return inputs


def _parse(field: Field, value: Any) -> Any:
    if field.several and isinstance(value, str):  # one item a line
        lines = [line for line in value.splitlines() if line.strip()]
        if field.kind in ("text", "choice"):
            return lines
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            raise ValueError(f"{field.title} must hold one {field.kind} a line, got {value[:60]!r}") from None
    if field.is_number and isinstance(value, str):
        return _parse_number(field, value.strip())
    if field.kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _parse_number(field: Field, text: str) -> int | float | None:
    """None for an empty text."""
    try:
        number = None if not text else int(text) if field.kind == "integer" else float(text)
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        kind = "an integer" if field.kind == "integer" else "a number"
        raise ValueError(f"{field.title} must be {kind} or empty, got {text[:60]!r}")
    return number
