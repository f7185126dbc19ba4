"""Training rows: conversations as files, as (prompt, answer) rows, as batches, and the order in which they come."""
