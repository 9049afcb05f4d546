"""Making a stage-2 set as in the paper (section 3.2): describe, polish, filter, review."""
