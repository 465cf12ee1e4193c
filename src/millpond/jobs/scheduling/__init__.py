"""The scheduler of jobs: pure functions of events and a clock that is passed in.

Owns who starts when and where. Does no I/O, reads no clock, draws no random number. The controller feeds events and
carries out decisions; the simulator drives the same code.
"""
