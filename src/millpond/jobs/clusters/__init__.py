"""The places where processes of jobs run, behind one protocol."""
