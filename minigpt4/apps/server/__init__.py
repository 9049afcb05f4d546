"""Server: the chat behind OpenAI's HTTP interface.

request → ``requests`` → ``pictures`` → ``answering`` (the chat, in a thread) → ``app``.
"""
