"""Clusters that have a gang scheduler: its objects, all pods at once, and nothing bound by us."""

from __future__ import annotations

import json

import pytest

from millpond.jobs.clusters.kubernetes.operator import OperatorSettings
from tests.integration.kubernetes.conftest import Room
from tests.integration.kubernetes.objects import kubedl_job


@pytest.mark.parametrize("scheduler", ["volcano", "kube-batch", "coscheduling", "kubernetes", "yunikorn"])
async def test_gang_is_handed_over_whole(room: Room, scheduler: str) -> None:
    await room.start(OperatorSettings(gang_scheduler=scheduler))
    await room.server.put(kubedl_job("TFJob", "g", {"PS": 1, "Worker": 2}))
    pods = await room.until(lambda: len(room.pods()) == 3 and room.pods(), "all pods are there before any runs")
    groups = room.server.all("podgroups")
    worker, server = pods["g-worker-0"], pods["g-ps-0"]
    assert all("nodeName" not in pod["spec"] for pod in pods.values())
    names = {item["name"] for item in worker["spec"]["containers"][0]["env"]}
    assert "CUDA_VISIBLE_DEVICES" not in names  # the device plugin says
    assert "initContainers" not in server["spec"]
    assert worker["spec"]["initContainers"][0]["command"][-1] == "g-ps-0"  # waits for the server's service
    match scheduler:
        case "volcano":
            assert (groups[0]["apiVersion"], groups[0]["spec"]) == ("scheduling.volcano.sh/v1beta1", {"minMember": 3})
            assert worker["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == "g"
            assert worker["spec"]["schedulerName"] == "volcano"
        case "kube-batch":
            assert groups[0]["apiVersion"] == "scheduling.incubator.k8s.io/v1alpha1"
            assert groups[0]["spec"] == {"minMember": 3}
            assert worker["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == "g"
            assert worker["spec"]["schedulerName"] == "kube-batch"
        case "coscheduling":
            assert groups[0]["apiVersion"] == "scheduling.x-k8s.io/v1alpha1"
            assert groups[0]["spec"]["minMember"] == 3
            assert worker["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] == "g"
        case "kubernetes":
            assert groups[0]["apiVersion"] == "scheduling.k8s.io/v1alpha2"
            assert groups[0]["spec"] == {"schedulingPolicy": {"gang": {"minCount": 3}}}
            assert worker["spec"]["schedulingGroup"] == {"podGroupName": "g"}
        case "yunikorn":
            assert not groups
            annotations = worker["metadata"]["annotations"]
            assert annotations["yunikorn.apache.org/task-group-name"] == "worker"
            listed = json.loads(annotations["yunikorn.apache.org/task-groups"])
            assert [(group["name"], group["minMember"]) for group in listed] == [("ps", 1), ("worker", 2)]
    for name in pods:
        await room.server.set_pod(name, "Running")
    await room.phase_is("tfjobs", "g", "Running")
    await room.server.set_pod("g-worker-0", "Succeeded", 0)
    await room.phase_is("tfjobs", "g", "Succeeded")
