"""The kinds of users, one a module: inference, streaming, embeddings, cold start."""
