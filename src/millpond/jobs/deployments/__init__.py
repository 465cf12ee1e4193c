"""Serving deployments: versions of a server, their replicas as jobs, and a port in front of them.

`wish` is what the user wants and `store` keeps it; `keeper` (one process a deployment) makes it so with `plan` and
`autoscale`, which are pure, and lets requests through `proxy` and `balance`. `client` has the verbs.
"""
