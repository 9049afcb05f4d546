"""The report: run folders and evaluations on one page that one can send around."""
