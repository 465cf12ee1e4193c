"""`millpond doctor`: what this machine can do, what it does not do, and what that costs.

facts.py collects, bandwidth.py measures, findings.py judges (pure), command.py prints.
"""
