"""What ``check-data`` finds out about a data set."""
