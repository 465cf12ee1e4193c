"""Clusters behind one protocol (`base.Cluster`): `local` runs processes, `simulated` runs events."""
