"""Server: the chat behind OpenAI's HTTP interface.

request → ``wire`` → ``messages`` → ``pictures`` → ``answering`` (the chat, in a thread) → ``app``.
"""
