"""What is compared of two answers to one request, and the report over all of them.

Pure: takes requests and answers, returns documents. `triton_differential` calls it.
"""

from __future__ import annotations

import collections
import json
import re
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from bench.serving.triton_asks import Answer, Ask, GrpcAsk, HttpAsk
from bench.serving.triton_reasons import reason_of
from millpond.serve.proto import inference_pb2 as pb

EXAMPLES = 3
_COUNTERS = ("inference_count", "execution_count", "inference_stats", "batch_stats", "response_stats")


@dataclass(slots=True)
class Row:
    """One request with both answers."""

    ask: Ask
    theirs: Answer
    ours: Answer


def steady(text: str) -> str:
    """Takes out of a text what belongs to a place or a moment."""
    text = re.sub(r"Got input\(s\) \[(.*?)\]", lambda found: "Got " + ",".join(sorted(found[1].split(","))), text)
    if "/model.py" not in text:  # looking for it would take a long text's length squared
        return text
    return re.sub(r"[^\s'\"]*?(\w+/\d+/model\.py)", r"\1", text)


def steady_document(value: Any, *, has_counts: bool) -> Any:
    """Takes out of a document what belongs to a place or a moment."""
    if isinstance(value, dict):
        kept = {}
        for name, item in value.items():
            if name in ("ns", "last_inference") or (name in _COUNTERS and not has_counts):
                kept[name] = None
            else:
                kept[name] = steady_document(item, has_counts=has_counts)
        return kept
    if isinstance(value, list):
        return [steady_document(item, has_counts=has_counts) for item in value]
    return steady(value) if isinstance(value, str) else value


def seen(ask: Ask, answer: Answer) -> dict[str, Any]:
    """Returns what is compared of an answer."""
    found: dict[str, Any] = {"status": answer.status}
    has_counts = "counted" in ask.kind
    if answer.region:
        found["memory"] = answer.region.hex()
    if isinstance(ask, GrpcAsk):
        found["details"] = steady(answer.body.decode())
        kind = pb.ModelStreamInferResponse if ask.rpc == "ModelStreamInfer" else getattr(pb, f"{ask.rpc}Response")
        documents = [
            json_format.MessageToDict(kind.FromString(item), preserving_proto_field_name=True)
            for item in answer.messages
        ]
        if ask.rpc == "ModelStreamInfer":  # requests of a stream run side by side: only the order of each's is fixed
            documents.sort(key=lambda item: item.get("infer_response", {}).get("model_name", ""))
        found["messages"] = steady_document(documents, has_counts=has_counts)
        return found
    length = answer.headers.get("inference-header-content-length")
    body, tail = (answer.body[: int(length)], answer.body[int(length) :]) if length else (answer.body, b"")
    found["raw"] = tail.hex()
    found["coding"] = answer.headers.get("content-encoding")
    found["type"] = answer.headers.get("content-type") if answer.status == "200" else None
    try:
        found["body"] = steady_document(json.loads(body), has_counts=has_counts)
    except ValueError:
        found["body"] = steady(body.decode("latin-1"))
    return found


def shown(ask: Ask) -> dict[str, Any]:
    """Returns a request as a report shows it."""
    if isinstance(ask, HttpAsk):
        body = (ask.raw or ask.body).decode("latin-1")
        return {"http": f"{ask.method} {ask.path}", "headers": ask.headers, "body": body[:1500]}
    kind = pb.ModelInferRequest if ask.rpc == "ModelStreamInfer" else getattr(pb, f"{ask.rpc}Request")
    try:
        messages = [json_format.MessageToDict(kind.FromString(item)) for item in ask.messages]
        return {"grpc": ask.rpc, "messages": messages}
    except Exception as error:
        return {"grpc": ask.rpc, "bytes": [item.hex() for item in ask.messages], "error": str(error)}


def difference(row: Row) -> tuple[str, dict[str, Any]] | None:
    """Names the class of a difference and returns what is not equal; None when the answers are equal."""
    one, other = seen(row.ask, row.theirs), seen(row.ask, row.ours)
    if one == other:
        return None
    names = [name for name in one if one[name] != other.get(name)]
    parts = {"triton": {name: one[name] for name in names}, "millpond": {name: other.get(name) for name in names}}
    kind = re.sub(r" (?:BOOL|BYTES|U?INT\d+|B?FP?\d+)$", "", row.ask.kind)
    if one["status"] != other["status"]:
        return f"{kind}: status {one['status']} here {other['status']}", parts
    return f"{kind}: {', '.join(sorted(names))} with status {one['status']}", parts


def report(rows: list[Row], ended: list[Ask], planned: int) -> dict[str, Any]:
    """Returns the share of equal answers, and every class of difference with examples."""
    classes: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        found = difference(row)
        if found is not None:
            classes[found[0]].append({"kind": row.ask.kind, **shown(row.ask), **found[1]})
    different = sum(map(len, classes.values()))
    statuses = sum(row.theirs.status == row.ours.status for row in rows)
    kinds = collections.Counter("http" if isinstance(row.ask, HttpAsk) else "grpc" for row in rows)
    return {
        "planned": planned,
        "requests": len(rows),
        "by_protocol": dict(kinds),
        "answered_200_or_ok": sum(row.theirs.status in ("200", "OK") for row in rows),
        "equal": len(rows) - different,
        "share_equal": round(1 - different / len(rows), 4),
        "share_equal_status": round(statuses / len(rows), 4),
        "ended_triton": [{"kind": ask.kind, **shown(ask)} for ask in ended],
        "differences": {
            name: {"count": len(found), "examples": found} for name, found in sorted(classes.items(), key=_most)
        },
    }


def _most(item: tuple[str, list[dict[str, Any]]]) -> tuple[int, str]:
    return -len(item[1]), item[0]


def page(found: dict[str, Any], seed: int) -> str:
    """Returns the page of differences."""
    lines = [
        "# Where we differ from a Triton server",
        "",
        "Written by `python -m bench.serving.triton_differential --triton VENV --page FILE`, which sends a corpus of",
        "good and bad requests, over HTTP and gRPC, to a Triton 2.51 and to us, and compares status, error text, JSON,",
        "raw tensors, compression, shared memory and streamed messages.",
        "",
        f"Seed {seed}: of {found['planned']} requests {found['requests']} were compared "
        f"({found['by_protocol']['http']} over HTTP, {found['by_protocol']['grpc']} over gRPC; "
        f"{found['answered_200_or_ok']} of them good). **{found['share_equal']:.2%} have the same answer, "
        f"{found['share_equal_status']:.2%} the same status.**",
        "",
        "## Every difference",
        "",
        "| requests | class | why |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {entry['count']} | {name} | {reason_of(name) or 'not explained'} |"
        for name, entry in found["differences"].items()
    ]
    lines += [
        "",
        "## Requests that ended Triton",
        "",
        "They are left out of the count, with what followed in their scene.",
        "",
    ]
    lines += [f"- {entry['kind']}: {_brief(entry)}" for entry in found["ended_triton"]]
    lines += [
        "- classification of a BYTES output: it ended a Triton before; the corpus leaves it out, we answer 400.",
        "",
        "The strict form (`--triton.form strict`) is meant to answer a client's mistake in all of them with a 4xx.",
    ]
    return "\n".join(lines) + "\n"


def _brief(entry: dict[str, Any]) -> str:
    if "http" in entry:
        shapes = re.findall(r'"shape": (\[[^\]]*\])', entry["body"])
        return f"`{entry['http']}` with shapes {', '.join(shapes)}"
    models = [message.get("modelName", "") for message in entry.get("messages", ())]
    return f"`{entry['grpc']}` with requests to {', '.join(models)}"
