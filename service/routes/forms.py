"""How a multipart form is described to OpenAPI where its body is streamed by hand."""

from __future__ import annotations

from typing import Any

VIDEO_FILE: dict[str, Any] = {"type": "string", "format": "binary", "description": "A video."}


def upload_form(fields: dict[str, Any] | None = None) -> dict[str, Any]:
    """The ``openapi_extra`` of a route that takes a video as the part ``file``, and perhaps ``fields`` beside it.

    Args:
        fields: JSON schemas of the other parts, by name; a route that names none ignores what else is sent.
    """
    schema: dict[str, Any] = {"type": "object", "required": ["file"], "properties": {"file": VIDEO_FILE}}
    if fields is not None:
        schema["additionalProperties"] = False
        schema["properties"] |= fields
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
