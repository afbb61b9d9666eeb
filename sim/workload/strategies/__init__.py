"""Strategies of test-time compute: ways to spend many calls, or long ones, on one question."""
