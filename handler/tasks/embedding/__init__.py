"""Parts of sentence embeddings: what the folder's own config says, and pooling by it."""
