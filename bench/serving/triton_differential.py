"""The same requests to a real Triton and to Millpond; prints what differs as JSON.

    python -m bench.serving.triton_differential --triton VENV [--count 2000] [--seed 7] [--json FILE]

VENV is a virtual environment with nvidia-pytriton 0.7.0, which carries Triton 2.51 for CPUs. Both servers get a copy of
the recordings' models and of those that `triton_models` writes. An answer is equal when its status and its JSON, bytes,
messages or error are, after counters, times and paths of this machine were taken out. Bar: 95 % equal. The reasons of
what remains are in docs/design/triton-differences.md.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from bench.serving.triton_asks import Answer, Ask, GrpcAsk, HttpAsk, made_region, send_grpc, send_http
from bench.serving.triton_corpus import REGION
from bench.serving.triton_corpus_grpc import corpus
from bench.serving.triton_models import write_models
from bench.serving.triton_pair import Peer, started_pair
from millpond.serve.proto import inference_pb2 as pb

EXAMPLES = 3
_COUNTERS = ("inference_count", "execution_count", "inference_stats", "batch_stats", "response_stats")


def steady(text: str) -> str:
    """Takes out of a text what belongs to a place or a moment."""
    text = re.sub(r"Got input\(s\) \[(.*?)\]", lambda found: "Got " + ",".join(sorted(found[1].split(","))), text)
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


def run(scenes: Iterable[list[Ask]], pair: tuple[Peer, Peer]) -> list[dict[str, Any]]:
    """Sends all to both; returns the requests with what each answered."""
    rows = []
    with ExitStack() as stack:
        stack.enter_context(made_region(REGION, bytes(range(128)) + bytes(128)))
        channels = [stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{peer.grpc}")) for peer in pair]
        for scene in scenes:
            for ask in scene:
                found = []
                for peer, channel in zip(pair, channels, strict=True):
                    answer = send_http(ask, peer) if isinstance(ask, HttpAsk) else send_grpc(ask, channel)
                    found.append(seen(ask, answer))
                rows.append({"ask": ask, "triton": found[0], "millpond": found[1]})
    return rows


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


def difference(row: dict[str, Any]) -> str | None:
    """Names the class of a difference; None when the answers are equal."""
    one, other = row["triton"], row["millpond"]
    if one == other:
        return None
    kind = re.sub(r" (?:BOOL|BYTES|U?INT\d+|B?FP?\d+)$", "", row["ask"].kind)
    if one["status"] != other["status"]:
        return f"{kind}: status {one['status']} here {other['status']}"
    names = sorted(name for name in one if one[name] != other.get(name))
    return f"{kind}: {', '.join(names)} with status {one['status']}"


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the share of equal answers, and every class of difference with examples."""
    classes: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        name = difference(row)
        if name is not None:
            classes[name].append(row)
    different = sum(map(len, classes.values()))
    statuses = sum(row["triton"]["status"] == row["millpond"]["status"] for row in rows)
    kinds = collections.Counter("http" if isinstance(row["ask"], HttpAsk) else "grpc" for row in rows)
    return {
        "requests": len(rows),
        "by_protocol": dict(kinds),
        "answered_200_or_ok": sum(row["triton"]["status"] in ("200", "OK") for row in rows),
        "equal": len(rows) - different,
        "share_equal": round(1 - different / len(rows), 4),
        "share_equal_status": round(statuses / len(rows), 4),
        "differences": {
            name: {
                "count": len(found),
                "examples": [{**shown(row["ask"]), **only_different(row)} for row in found[:EXAMPLES]],
            }
            for name, found in sorted(classes.items(), key=lambda item: -len(item[1]))
        },
    }


def only_different(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of both answers that are not equal."""
    one, other = row["triton"], row["millpond"]
    names = [name for name in one if one[name] != other.get(name)]
    return {server: {name: row[server].get(name) for name in names} for server in ("triton", "millpond")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", type=Path, required=True, help="Virtual environment with nvidia-pytriton 0.7.0.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_models(work / "models")
        with started_pair(given.triton, work / "models", work) as pair:
            found = report(run(corpus(given.seed, given.count), pair))
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if given.json:
        given.json.write_text(text + "\n")
    print(text)
    sys.exit(found["share_equal"] < 0.95)


if __name__ == "__main__":
    main()
