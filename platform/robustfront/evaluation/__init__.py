"""Measuring a classifier: records for each example, and metrics that are functions of records."""
