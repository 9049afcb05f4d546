"""Server: the chat as an HTTP server with OpenAI's interface."""
