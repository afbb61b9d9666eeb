"""Rackcast: forecast tokens, latency, watts and dollars of LLM inference."""
