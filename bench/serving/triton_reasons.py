"""Why an answer of ours differs from a Triton's, by the class of difference that `triton_report` names."""

from __future__ import annotations

import re

SHAPES = "which of two wrong things is named first; ours looks at sizes before it looks at the batch"
REASONS: tuple[tuple[str, str], ...] = (
    (r"header: status closed", "a client learns what was wrong with its head; Triton closes the connection"),
    (
        r"coding: (body with status 400|status 200 here 400)",
        "a body that is not what its `Content-Encoding` says, or is "
        "cut off, is refused; Triton goes on with what it could read of it",
    ),
    (r"coding: coding", "a body of less than 256 bytes is not compressed"),
    (r"coding: status 500", "a body that was cut off is refused as such, not as the JSON that could be read of it"),
    (
        r"description|grpc ModelConfig",
        "what Triton fills in and leaves out depends on how a model came to be loaded; ours fills in the same always",
    ),
    (r"grpc trace", "one text for every value out of range"),
    (r"json element|json fault 8|generate_stream id_bytes", "which of two wrong things is named first"),
    (r"generate_stream id_int32", "the order of an empty output among the members of an event"),
    (r"grpc SystemShared", "which of two wrong things about a region is named first"),
    (r"(un)?load (a%2fb|\.\.)|route HEAD", "names that cannot be a model's never reach the repository"),
    (r"route DELETE|version ", 'a path that names nothing is "Not Found" whatever the method or the digits'),
    (
        r"grpc ModelStatistics",
        "ours has response statistics over gRPC too, and does not count a request as an inference that its model "
        "answered with an error",
    ),
    (r"grpc fault 5|json fault 1[568]|shapes", SHAPES),
    (r"grpc fault 13", "version 0 is refused as no version; Triton looks for it"),
    (r"grpc fault 1[78]", "a sequence's id, and a parameter of the client's own, may be an unsigned number too"),
    (
        r"(binary|json|priority|grpc|grpc raw): status (silence|INTERNAL|500) here (200|OK)$",
        'Triton\'s process of that model had just died ("not healthy"), or no answer came from it',
    ),
    (r"trace setting: status 500", "a value of the wrong kind is the client's fault"),
    (r"index|grpc RepositoryIndex|grpc no message", "the moment of asking: a model on its way in or out"),
    (r"json fault 22", "the missing size is named before the region that is not there"),
    (r"(grpc )?load", "the error says why the configuration was not read"),
    (r"memory", "which of two wrong things about a region is named first, and when an output's place is checked"),
    (r"json: body", "the last digit of one double: Triton's parser of JSON rounds it down, ours to nearest"),
    (r"logging", "which of two wrong settings is named first"),
    (r"grpc logging", "of a message with a wrong setting Triton applies what it meets before it; ours applies nothing"),
    (r"grpc stream", "responses of different requests go out as they end"),
)


def reason_of(name: str) -> str:
    """Returns the reason for a class of difference; "" when there is none yet."""
    return next((reason for pattern, reason in REASONS if re.match(pattern, name)), "")
