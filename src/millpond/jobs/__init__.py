"""Jobs: gangs of processes with roles, placed whole, on one machine or many.

Import the modules: `jobs.spec` loads, `jobs.client` talks to a controller, `jobs.controller` is one.
"""
