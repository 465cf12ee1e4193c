"""`millpond bench`: latency and throughput of a model or of any OpenAI-style URL.

measure.py holds the numbers (pure), load.py the clients, local.py and remote.py the two kinds of target, command.py the
flags and the report.
"""
