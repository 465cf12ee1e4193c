"""`ModelConfig` messages as Triton's JSON document and back.

The document is what `/v2/models/M/config` answers and what `initialize(args)` of a Python model gets: names as in the
proto file, in its order, every plain field whether set or not, and integers of 64 bits as numbers where protobuf's own
JSON has strings. Knows nothing of servables; called by `triton_config`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from millpond.serve.proto.model_config_pb2 import ModelConfig
from millpond.serve.servables.errors import ServableError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_TEXT = 4 << 20  # a configuration of a large ensemble is some 100 KB
_MAX_DEPTH = 16
_NEWER = frozenset({"max_inflight_requests"})  # unknown to the release whose documents ours equal; shown when set


def read_text(text: str, where: str) -> ModelConfig:
    """Reads a `config.pbtxt`.

    Args:
        text: Its content.
        where: How a message names the file.

    Raises:
        ServableError: It is not a model configuration.
    """
    if len(text) > _MAX_TEXT:
        raise ServableError("invalid_argument", f"failed to read text proto from {where}: longer than {_MAX_TEXT}")
    try:
        return text_format.Parse(text, ModelConfig())
    except (text_format.ParseError, ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise ServableError("invalid_argument", f"failed to read text proto from {where}: {reason}") from None


def read_document(document: Mapping[str, object]) -> ModelConfig:
    """Reads a configuration from JSON, as a load request brings it or `print_document` made it.

    Raises:
        ServableError: It is not a model configuration.
    """
    try:
        return json_format.ParseDict(dict(document), ModelConfig(), max_recursion_depth=_MAX_DEPTH)
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        raise ServableError("invalid_argument", f"failed to parse the model configuration: {error}") from None


def read_json(text: str | bytes) -> ModelConfig:
    """Reads a configuration from JSON text.

    Raises:
        ServableError: It is not JSON, or not a model configuration.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ServableError("invalid_argument", f"failed to parse the model configuration: {error}") from None
    if not isinstance(document, dict):
        raise ServableError("invalid_argument", "failed to parse the model configuration: not a JSON object")
    return read_document(document)


def print_document(message: Message) -> dict[str, Any]:
    """Returns a message as its JSON document."""
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            document[field.name] = _map(field, getattr(message, field.name))
        elif field.is_repeated:
            document[field.name] = [_value(field, item) for item in getattr(message, field.name)]
        elif field.name in _NEWER and not getattr(message, field.name):
            continue
        elif not field.has_presence or message.HasField(field.name):
            document[field.name] = _value(field, getattr(message, field.name))
    return document


def _map(field: FieldDescriptor, items: Any) -> dict[str, Any]:
    assert field.message_type is not None
    value = field.message_type.fields_by_name["value"]
    return {str(key): _value(value, items[key]) for key in sorted(items)}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return print_document(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value
