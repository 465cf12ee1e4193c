"""What the cluster's own controller does with a Deployment, one change at a time."""

from __future__ import annotations

import asyncio
import json

from tests.integration.kubernetes.api_server import ApiServer, Object


async def keep_deployments(server: ApiServer) -> None:
    while True:
        for body in server.all("deployments"):
            await keep(server, body)
        await asyncio.sleep(0.05)


async def keep(server: ApiServer, body: Object) -> None:
    """As the cluster's own controller: one more of the new, or one less of the old, and the counts."""
    metadata, spec = body["metadata"], body["spec"]
    namespace = metadata["namespace"]
    own = [pod for pod in server.all("pods") if pod["metadata"].get("ownerReferences", [{}])[0].get("uid") ==
           metadata["uid"] and not pod["metadata"].get("deletionTimestamp")]  # fmt: skip
    new = [pod for pod in own if pod["metadata"]["annotations"]["made-of"] == json.dumps(spec["template"])]
    ready = [pod for pod in own if pod["status"].get("conditions")]
    for pod in own:
        if pod["status"]["phase"] == "Running" and not pod["status"].get("conditions"):
            now = {"type": "Ready", "status": "True", "lastTransitionTime": metadata["creationTimestamp"]}
            await server.change("pods", pod["metadata"]["name"], {"status": {"conditions": [now]}}, namespace)
    wanted = spec.get("replicas", 1)
    old = [pod for pod in own if pod not in new]
    if len(new) < wanted and len(own) <= wanted:
        numbers = {int(pod["metadata"]["name"].rpartition("-")[2]) for pod in server.all("pods")}
        name = f"{metadata['name']}-{max(numbers, default=0) + 1}"
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"]}
        await server.put({
            "apiVersion": "v1", "kind": "Pod", "spec": spec["template"]["spec"] | {"nodeName": "n1"},
            "metadata": {"name": name, "namespace": namespace, "labels": spec["template"]["metadata"]["labels"],
                         "annotations": {"made-of": json.dumps(spec["template"])}, "ownerReferences": [owner]},
        })  # fmt: skip
    elif (old and len(ready) > wanted) or len(new) > wanted:
        await server.remove("pods", (old or new)[0]["metadata"]["name"], namespace)
    said = {"observedGeneration": metadata["generation"], "replicas": len(own), "updatedReplicas": len(new),
            "readyReplicas": len(ready)}  # fmt: skip
    if server.find("deployments", metadata["name"], namespace) and body.get("status") != said:
        await server.change("deployments", metadata["name"], {"status": said}, namespace)
