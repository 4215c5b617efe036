"""The VMMs' own descriptions of their API, and whether a request or an answer keeps to one.

The files belong to the VMMs' projects and are not copied here: KATA_TEST_SPECS names a directory with them,
or they are in ../shared/specs beside the checkout. Both formats in use are read: Swagger 2.0 and OpenAPI 3.0.
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

DIRECTORY = Path(os.environ.get("KATA_TEST_SPECS", Path(__file__).parents[3] / "shared/specs"))
SPECS = {
    "clh": ("cloud-hypervisor-51.1.yaml", "cloud-hypervisor-54.0.yaml"),
    "firecracker": ("firecracker-1.12.1.yaml", "firecracker-1.17.0-dev.yaml"),
}

MISDESCRIBED = ("firecracker-1.12.1.yaml",)
"""Calls a list an object. Its source, cpu_config/x86_64/custom_cpu_template.rs: Vec<CpuidLeafModifier>."""


def specifications() -> list[Any]:
    """Parameters (hypervisor, file) for each description; where one is missing, its tests are skipped."""
    return [
        pytest.param(
            name,
            DIRECTORY / file,
            id=file.removesuffix(".yaml"),
            marks=pytest.mark.skipif(
                not (DIRECTORY / file).exists(),
                reason=f"{DIRECTORY / file} is missing: name a directory with it in KATA_TEST_SPECS",
            ),
        )
        for name, files in SPECS.items()
        for file in files
    ]


class Description:
    """One API's description. Objects may have no property that it does not name."""

    def __init__(self, file: Path) -> None:
        self._root = yaml.safe_load(file.read_text())
        self._swagger = "swagger" in self._root
        self._base = (
            self._root.get("basePath", "").rstrip("/")
            if self._swagger
            else "/" + self._root["servers"][0]["url"].split("/", 3)[3]
        )
        if file.name in MISDESCRIBED:
            cpu = self._root["definitions"]["CpuConfig"]["properties"]
            cpu["cpuid_modifiers"] = {"type": "array"}
        _close(self._root.get("definitions") or self._root["components"]["schemas"])

    def check_request(self, method: str, path: str, body: Any) -> None:
        """Raise AssertionError or ValidationError for a request that the API does not have."""
        operation = self._operation(method, path)
        schema = self._body_schema(operation)
        if schema is None:
            assert body is None, f"{method} {path} takes no body, it got {body}"
            return
        self._validate(schema, body)

    def check_answer(self, method: str, path: str, status: int, answer: Any) -> None:
        """Raise AssertionError or ValidationError for an answer that the API does not give."""
        responses = {str(key): value for key, value in self._operation(method, path)["responses"].items()}
        response = responses.get(str(status)) or responses.get("default")
        assert response is not None, f"{method} {path} has no answer with status {status}"
        if self._swagger:
            schema = response.get("schema")
        else:
            schema = (response.get("content") or {}).get("application/json", {}).get("schema")
        if schema is None:
            assert answer is None, f"{method} {path} is answered with {status} and no body"
            return
        self._validate(schema, answer)

    def _operation(self, method: str, path: str) -> dict[str, Any]:
        assert path.startswith(self._base), f"{path} is not below {self._base}"
        for pattern, operations in self._root["paths"].items():
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path.removeprefix(self._base)):
                assert method.lower() in operations, f"{path} has no method {method}"
                found: dict[str, Any] = operations[method.lower()]
                return found
        raise AssertionError(f"there is no path {path}")

    def _body_schema(self, operation: dict[str, Any]) -> Any:
        if self._swagger:
            bodies = [item["schema"] for item in operation.get("parameters", ()) if item["in"] == "body"]
            return bodies[0] if bodies else None
        return operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")

    def _validate(self, schema: Any, value: Any) -> None:
        whole = copy.copy(schema) | {key: self._root.get(key) for key in ("definitions", "components")}
        jsonschema.Draft4Validator(whole).validate(value)


def _close(schemas: dict[str, Any]) -> None:
    for schema in schemas.values():
        if schema.get("properties"):
            schema.setdefault("additionalProperties", False)
