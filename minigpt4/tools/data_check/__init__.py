"""What ``check-data`` and ``check-shards`` find out about data sets and shards."""
