"""Rows: reading, checking and cutting them into batches."""
