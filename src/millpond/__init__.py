"""Millpond: an LLM inference platform."""
