"""Jobs: whole gangs, quotas and wiring, from one host to a cluster.

A service: stands on `api`, `config` and `base`, and uses nothing of `inference` or `serve`. `scheduling` decides,
`controller` carries out, `clusters` are the places where processes run.
"""
