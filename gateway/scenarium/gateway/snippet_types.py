"""A Python module with a scenario's request and answer as pydantic classes, from its schemas, by datamodel-code-generator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError

if TYPE_CHECKING:
    from scenarium.gateway.snippets import Subject

HEAD = '''"""Request and answer of the scenario {name}, written by: scenarium snippet {name} --lang types

    from scenarium.client import Client

    with Client("{url}") as client:
        answer = client.predict("{name}", Request(…), into=Answer)
"""
'''


def module(subject: Subject) -> str:
    """The module's text.

    Raises:
        ScenariumError: SCN-1012 (the generator is not installed).
    """
    try:
        from datamodel_code_generator import generate
        from datamodel_code_generator.config import GenerateConfig
        from datamodel_code_generator.enums import DataModelType, InputFileType
        from datamodel_code_generator.format import PythonVersion
        from datamodel_code_generator.parser import LiteralType
    except ImportError as fault:
        raise ScenariumError("SCN-1012", module=fault.name) from fault
    schemas: dict[str, Any] = {}
    _add(schemas, "Request", subject.request_schema, strict=True)
    _add(schemas, "Answer", subject.response_schema, strict=False)
    found = generate(
        json.dumps({"openapi": "3.1.0", "info": {"title": subject.name, "version": "1"}, "paths": {}, "components": {"schemas": schemas}}),
        config=GenerateConfig(
            input_file_type=InputFileType.OpenAPI,
            output_model_type=DataModelType.PydanticV2BaseModel,
            target_python_version=PythonVersion.PY_311,
            base_class="scenarium.client.models.Model",
            custom_file_header=HEAD.format(name=subject.name, url=subject.url),
            use_standard_collections=True,
            use_union_operator=True,
            field_constraints=True,
            strict_nullable=True,
            use_schema_description=True,
            use_field_description=True,
            enum_field_as_literal=LiteralType.All,
            use_double_quotes=True,
            formatters=[],
        ),
    )
    return f"{found}\n"


def _add(schemas: dict[str, Any], name: str, schema: Mapping[str, Any], *, strict: bool) -> None:
    """File a schema and its definitions; one that has the name of another one, but not its content, gets ``name`` before its own.

    Not ``strict``: members that a later version may add are taken.
    """
    inner = schema.get("$defs", {})
    same = {key: key for key in inner}
    taken = {key for key in inner if key in ("Request", "Answer") or (key in schemas and schemas[key] != _cleaned(inner[key], same, strict))}
    names = {key: f"{name}{key}" if key in taken else key for key in inner}
    for key, definition in inner.items():
        schemas[names[key]] = _cleaned(definition, names, strict)
    schemas[name] = _cleaned({key: value for key, value in schema.items() if key != "$defs"}, names, strict)


def _cleaned(schema: Any, names: Mapping[str, str], strict: bool) -> Any:
    """A schema as the generator wants it: its titles repeat the names, ``bytes`` have a format that it knows, references lead to OpenAPI's place."""
    if isinstance(schema, list):
        return [_cleaned(each, names, strict) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            found[key] = {field: _cleaned(each, names, strict) for field, each in value.items()}
        elif key == "$ref":
            found[key] = f"#/components/schemas/{names[value.removeprefix('#/$defs/')]}"
        elif key == "format" and value in ("base64url", "base64"):
            found[key] = "binary"
        elif key in ("default", "const", "enum", "examples", "required"):
            found[key] = value
        elif key != "title" and (strict or key != "additionalProperties" or value is not False):
            found[key] = _cleaned(value, names, strict)
    return found
