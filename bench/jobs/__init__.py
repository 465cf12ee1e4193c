"""Benches of the job scheduler: public traces in, JSON out."""
