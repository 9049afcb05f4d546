"""The chat page: a browser's view of ``minigpt4.chat``; it shows, and the core remembers."""
