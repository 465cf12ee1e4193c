"""Deployments on Kubernetes: objects of the cluster in place of a gateway and jobs of ours.

`render` makes the objects, `report` reads how they go, `client` has the verbs.
"""
