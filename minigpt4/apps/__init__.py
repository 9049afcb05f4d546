"""Front ends of the chat: page, terminal, captions and server; the conversation is ``chat``'s."""
