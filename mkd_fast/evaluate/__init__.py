"""Metrics per language, the report's tables, and its plots."""
