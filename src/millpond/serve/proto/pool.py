"""The descriptor pool of our messages, and how a generated module fills itself from it.

Called by the generated `*_pb2` modules only. Nothing here knows which contracts there are.
"""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()


def load_messages(serialized: bytes) -> dict[str, object]:
    """Adds a serialized `FileDescriptorProto` to the pool and returns the names of its module.

    These are messages, enums and the values of enums.
    """
    name = FileDescriptorProto.FromString(serialized).name
    POOL.AddSerializedFile(serialized)  # type: ignore[no-untyped-call]
    file = POOL.FindFileByName(name)  # type: ignore[no-untyped-call]
    names: dict[str, object] = {"DESCRIPTOR": file}
    for name, message in file.message_types_by_name.items():
        names[name] = GetMessageClass(message)
    for name, enum in file.enum_types_by_name.items():
        names[name] = EnumTypeWrapper(enum)
        names.update({value.name: value.number for value in enum.values})
    return names
