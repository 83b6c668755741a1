"""The OpenAI API in front of the same scenarios: chat, completions, embeddings, models."""
