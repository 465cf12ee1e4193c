"""The command line: one module a command, each importing its heavy parts only when it runs.

Knows flags, terminals and exit codes; everything else is asked of the rooms below. Nobody imports it.
"""
