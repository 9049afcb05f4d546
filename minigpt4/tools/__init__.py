"""Tools: each can be deleted with its command, page and tests; none imports another."""
